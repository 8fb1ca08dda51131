//! Where to look for rows to purge, without an index on `sent_at` (which every mark would have to maintain) and without
//! reading the whole table.
//!
//! Rows are sent roughly in `id` order, so that the oldest are at the lowest ids. Each look reads one window of ids from
//! there. Rows that stay (dead letters, delayed rows, replayed ones) are walked past; a window that holds nothing but
//! rows sent too recently says that the rest is younger still, and the walk begins again.

use super::StoreError;

/// Windows read in one call.
const WINDOWS_PER_CALL: u32 = 8;

/// Purges up to `limit` rows by looks at one window after the other. `look` is told how many rows are wanted, and tells
/// how many are gone and whether to go on.
pub(super) async fn walk<F: Future<Output = Result<(u64, bool), StoreError>>>(
    limit: u32,
    look: impl Fn(u64) -> F,
) -> Result<u64, StoreError> {
    let mut deleted = 0;
    for _ in 0..WINDOWS_PER_CALL {
        let (gone, more) = look(u64::from(limit).saturating_sub(deleted)).await?;
        deleted += gone;
        if !more {
            break;
        }
    }
    Ok(deleted)
}

/// Where the walk is: ids above this are looked at next.
#[derive(Debug, Default)]
pub(super) struct PurgeWalk {
    position: i64,
}

/// What one look found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Rows in it.
    pub(super) seen: u64,
    /// The highest id in it.
    pub(super) last: Option<i64>,
    /// Rows that were sent, but not long enough ago.
    pub(super) young: u64,
    /// Rows deleted.
    pub(super) deleted: u64,
    /// The highest id deleted.
    pub(super) last_deleted: Option<i64>,
}

impl PurgeWalk {
    pub(super) fn position(&self) -> i64 {
        self.position
    }

    /// How many ids a window holds when `wanted` rows are to be deleted.
    pub(super) fn size(wanted: u64) -> u64 {
        wanted.saturating_mul(2).clamp(1_000, 10_000)
    }

    /// Moves on after a look. False: there is nothing more to find now.
    pub(super) fn advance(&mut self, found: Window, size: u64, wanted: u64) -> bool {
        if found.deleted >= wanted {
            // More may wait in the same window. Not from its beginning: the index entries of what was just deleted are
            // still there, and reading over them again and again is what makes a purge slow.
            self.position = found.last_deleted.unwrap_or(self.position);
            return false;
        }
        let end_of_table = found.seen < size;
        let all_young = found.young == found.seen;
        match found.last {
            Some(last) if !end_of_table && !all_young => {
                self.position = last;
                true
            }
            _ => {
                self.position = 0;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seen: u64, last: i64, young: u64, deleted: u64) -> Window {
        Window {
            seen,
            last: Some(last),
            young,
            deleted,
            last_deleted: (deleted > 0).then_some(last - 1),
        }
    }

    #[test]
    fn the_walk_passes_what_stays_and_begins_again_at_young_rows() {
        let mut walk = PurgeWalk::default();
        assert!(
            walk.advance(window(1_000, 1_000, 0, 0), 1_000, 500),
            "dead letters are walked past"
        );
        assert_eq!(walk.position(), 1_000);
        assert!(
            !walk.advance(window(1_000, 2_000, 0, 500), 1_000, 500),
            "enough for one call"
        );
        assert_eq!(walk.position(), 1_999);
        assert!(walk.advance(window(1_000, 3_000, 900, 100), 1_000, 500));
        assert!(
            !walk.advance(window(1_000, 4_000, 1_000, 0), 1_000, 500),
            "the rest is younger"
        );
        assert_eq!(walk.position(), 0);
        assert!(!walk.advance(window(3, 3, 0, 0), 1_000, 500), "the end of the table");
    }

    #[test]
    fn an_empty_table_is_no_work() {
        let nothing = Window {
            seen: 0,
            last: None,
            young: 0,
            deleted: 0,
            last_deleted: None,
        };
        assert!(!PurgeWalk::default().advance(nothing, 1_000, 10));
    }
}
