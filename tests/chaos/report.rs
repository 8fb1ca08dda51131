//! What the run saw.

use std::collections::BTreeMap;

use crate::faults::Record;
use crate::ledger::Ledger;
use crate::stage::Stage;
use crate::watch::Seen;

pub(crate) fn print(stage: &Stage, record: &Record, ledger: &Ledger, seen: &Seen) {
    let mut kinds = BTreeMap::new();
    for fault in record.all().iter() {
        *kinds.entry(fault.kind).or_insert(0) += 1;
    }
    let book = ledger.book();
    let tally = stage.tally.lock().expect("no panic while locked");
    println!("\n{:<40} {:>6} {:>11}", "fault", "times", "duplicates");
    for (kind, times) in &kinds {
        let duplicates = book.duplicates.get(kind).copied().unwrap_or_default();
        println!("{:<40} {times:>6} {duplicates:>11}", kind.name());
    }
    let (times, duplicates): (i32, usize) = (kinds.values().sum(), book.duplicates.values().sum());
    println!("{:<40} {times:>6} {duplicates:>11}\n", "all");
    let line = |name: &str, value: String| println!("{name:<40} {value}");
    line("time", format!("{:.0} s", record.now().as_secs_f64()));
    line("rows committed", book.committed.to_string());
    line("rows arrived", book.arrived.to_string());
    line("rows rolled back", book.rolled_back.to_string());
    line("redelivered by the broker", book.redelivered.to_string());
    line("- first seen so, after a later one", book.order_unknown.to_string());
    line(
        "longest stall while nothing was wrong",
        format!("{:.1} s", seen.longest_stall.as_secs_f64()),
    );
    line(
        "longest time to drain",
        format!("{:.1} s", seen.longest_drain.as_secs_f64()),
    );
    line("quiet points", seen.quiet_points.to_string());
    line("looks at locks and leases", seen.looks.to_string());
    line("shares taken over from another owner", seen.take_overs.to_string());
    line("free shares taken", seen.taken.to_string());
    line("shares handed over gracefully", tally.handed_over.to_string());
    line("leases lost", tally.lost_leases.to_string());
    line("relay processes", tally.starts.to_string());
    line("errors in the relays' logs", tally.errors.len().to_string());
    for error in tally.errors.iter().take(5) {
        println!("  {error}");
    }
    if !book.violations.is_empty() {
        println!("\nthe last faults, in seconds:\n{}", record.last(10));
        println!("logs of the relays: {}\n", stage.logs.display());
    }
    for violation in &book.violations {
        println!("VIOLATION {violation}");
    }
}
