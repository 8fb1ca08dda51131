//! One suite for every database: what a store promises, against real servers and files.

mod existing;
mod harness;
mod history;
mod leasing;
mod mapped;
mod mariadb;
mod mariadb_faults;
mod numbering;
mod operating;
mod plans;
mod postgres;
mod postgres_faults;
mod reading;
mod schema;
mod sqlite;
mod writing;

/// Every case against every database.
macro_rules! conformance {
    ($($room:ident: $($case:ident)*;)*) => {
        mod on_postgres {
            $($(#[tokio::test]
            async fn $case() {
                crate::store::$room::$case(&<crate::store::postgres::Postgres as crate::store::harness::Harness>::fresh().await).await;
            })*)*
        }
        mod on_mariadb {
            $($(#[tokio::test]
            async fn $case() {
                crate::store::$room::$case(&<crate::store::mariadb::MariaDb as crate::store::harness::Harness>::fresh().await).await;
            })*)*
        }
        mod on_sqlite {
            $($(#[tokio::test]
            async fn $case() {
                crate::store::$room::$case(&<crate::store::sqlite::Sqlite as crate::store::harness::Harness>::fresh().await).await;
            })*)*
        }
    };
}

conformance! {
    reading:
        a_minimal_insert_gets_defaults
        every_column_is_read
        the_head_follows_cursor_and_limit
        delayed_rows_say_how_long
        large_bodies_are_left_and_fetched
        shares_divide_the_rows
        a_scan_leaves_out_what_nobody_waits_for
        a_probe_tells_what_is_there
        a_fetch_gives_unsent_rows_only;
    writing:
        a_row_is_marked_once
        a_row_is_deleted_once
        five_thousand_rows_are_marked
        a_retry_is_seen_as_a_wait
        a_dead_letter_leaves_the_head
        a_late_failure_takes_nothing
        a_dead_letter_that_was_confirmed_is_sent
        dead_keys_come_with_their_lowest_row
        a_purge_respects_age_and_limit
        a_purge_passes_what_stays
        the_backlog_is_counted;
    schema:
        a_missing_table_is_waited_for
        a_missing_column_is_named
        two_tables_live_in_one_database
        strange_names_work
        migrations_run_once
        printed_migrations_are_the_same;
    leasing:
        shares_are_taken_given_and_left
        a_lease_that_ran_out_is_taken_over_and_one_that_did_not_is_not
        a_lease_that_ran_out_and_was_not_taken_is_renewed_under_its_epoch
        shares_of_another_number_are_not_owned_beside_each_other
        a_failure_under_a_lost_lease_takes_nothing
        a_crowd_shares_fairly;
    operating:
        dead_letters_are_listed_by_filter
        dead_letters_are_replayed_and_discarded_once
        waiting_keys_name_the_row_they_wait_for
        a_row_that_waits_is_released_once
        sent_rows_are_unsent_again_once
        owners_are_told_with_their_time
        upkeep_misses_an_index_that_is_gone;
    history:
        errors_of_earlier_attempts_are_kept
        only_the_newest_errors_are_kept
        what_is_noted_goes_with_its_row
        errors_of_a_table_of_the_application_are_kept
        without_its_table_everything_else_works;
}
