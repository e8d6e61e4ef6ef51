//! What the user sees while `xtask` works: a spinner on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

/// One step of the work, from its start to its end.
pub(crate) struct Step {
    bar: Option<ProgressBar>,
    text: String,
    begun: Instant,
}

/// Begins a step; `text` says what is being done ("starting Kafka").
pub(crate) fn step(text: impl Into<String>) -> Step {
    let text = text.into();
    let bar = stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style).with_message(text.clone());
        bar.enable_steady_tick(TICK);
        bar
    });
    Step { bar, text, begun: Instant::now() }
}

impl Step {
    /// Says how far the step is.
    pub(crate) fn say(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.text));
        }
    }

    /// Ends the step; the line stays, with what came out of it.
    pub(crate) fn done(self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.begun.elapsed().as_secs_f32();
        let took = if seconds >= 1.0 { format!(" ({seconds:.1} s)") } else { String::new() };
        note(&format!("{}: {outcome}{took}", self.text));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line of its own.
pub(crate) fn note(text: &str) {
    eprintln!("· {text}");
}
