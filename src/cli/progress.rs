//! How far long work is, for a person at a terminal: one line that is written over, and gone when the work is done.

use std::io::IsTerminal as _;

/// Deletes the line.
const CLEAR: &str = "\r\u{1b}[K";

/// Places of the bar.
const WIDTH: u64 = 30;

/// Nothing where standard error is no terminal.
pub(super) struct Progress {
    total: Option<u64>,
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// `total`: how much there is to do, if that is known.
    pub(super) fn new(total: Option<u64>) -> Self {
        Self {
            total,
            terminal: is_wanted(),
            shown: false,
        }
    }

    pub(super) fn show(&mut self, done: u64, what: &str) {
        if self.terminal {
            eprint!("{CLEAR}{}", line(self.total, done, what));
            self.shown = true;
        }
    }

    /// Makes room for a line of the log.
    pub(super) fn hide(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("{CLEAR}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.hide();
    }
}

/// Whether there is somebody to look at it.
pub(super) fn is_wanted() -> bool {
    std::io::stderr().is_terminal()
}

fn line(total: Option<u64>, done: u64, what: &str) -> String {
    match total {
        // More can come while one works.
        Some(total) if total > 0 && done <= total => {
            let filled = done.saturating_mul(WIDTH) / total;
            let bar = "#".repeat(usize::try_from(filled).unwrap_or_default());
            format!("[{bar:30}] {done} of {total} {what} ")
        }
        _ => format!("{done} {what} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_where_the_end_is_known() {
        assert_eq!(
            line(Some(300), 100, "replayed"),
            "[##########                    ] 100 of 300 replayed "
        );
        assert_eq!(line(Some(300), 300, "replayed").matches('#').count(), 30);
        assert_eq!(line(Some(300), 301, "replayed"), "301 replayed ");
        assert_eq!(line(None, 7, "found"), "7 found ");
    }
}
