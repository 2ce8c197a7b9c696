//! A job on its way, as a person sees it: a bar on a terminal, else a line every five seconds; figures are the service's.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{Client, Done, Exit, Failure, text};
use crate::say;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How long the service may be unreachable while a job is watched.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// What is shown of something that takes its time.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {msg}").expect("the template is valid");
            ProgressBar::new(0).with_style(style)
        });
        Self {
            bar,
            said: Instant::now(),
        }
    }

    /// Shows where it stands.
    pub(super) fn show(&mut self, done: u64, total: Option<u64>, sentence: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.unwrap_or(0).max(done));
            bar.set_position(if total.is_some() { done } else { 0 });
            bar.set_message(sentence());
        } else if self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            say(&sentence());
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

impl Client {
    /// Waits for a job's end and shows its progress meanwhile. Ctrl-C leaves the job alone.
    pub(super) async fn finish(&self, job: &Value, timeout: Option<Duration>) -> Done<Value> {
        let id = text(&job["id"]).to_owned();
        let watch = format!("couponbook jobs watch {id}");
        self.under_way
            .set(format!("the job goes on; watch it with: {watch}"));
        let mut progress = Progress::new();
        let (begun, mut heard) = (Instant::now(), Instant::now());
        let path = format!("/v1/jobs/{id}");
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
            // A bar is at most a second old; the end is told at once either way.
            let wait = if progress.bar.is_some() { 1 } else { 5 };
            let wait = left.map_or(wait, |left| left.as_secs().clamp(1, wait));
            match self.http.get_waiting(&path, Some(wait)).await {
                Ok(job) => {
                    heard = Instant::now();
                    if is_over(&job) {
                        return Ok(job);
                    }
                    let number = |name: &str| job["progress"][name].as_u64();
                    progress.show(number("done").unwrap_or(0), number("total"), || sentence(&job));
                }
                // The job does not need this connection: a service that restarts is waited for.
                Err(failure) if failure.exit == Exit::Failed && heard.elapsed() < UNREACHABLE => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(failure) => return Err(failure),
            }
            if left.is_some_and(|left| left.is_zero()) {
                progress.end();
                let message = format!("the job has not ended in time; it goes on. Watch it with: {watch}");
                return Err(Failure::new(Exit::TimedOut, message));
            }
        }
    }
}

/// Whether nothing more will happen to a job.
pub(super) fn is_over(job: &Value) -> bool {
    matches!(
        text(&job["state"]),
        "succeeded" | "partially_succeeded" | "failed" | "cancelled"
    )
}

/// `import: 412,380 of 1,000,000 rows, 58,012 rows/s, about 10 s left`.
pub(super) fn sentence(job: &Value) -> String {
    let progress = &job["progress"];
    let unit = text(&progress["unit"]);
    let mut sentence = format!("{}: ", text(&job["kind"]));
    if job["state"] == "queued" {
        sentence += "queued";
        return sentence;
    }
    sentence += &grouped(progress["done"].as_u64().unwrap_or(0));
    if let Some(total) = progress["total"].as_u64() {
        sentence += &format!(" of {}", grouped(total));
    }
    sentence += &format!(" {unit}");
    if let Some(rate) = progress["rate"].as_f64() {
        sentence += &format!(", {} {unit}/s", grouped(rate.round() as u64));
    }
    if let Some(eta) = progress["eta_seconds"].as_f64() {
        sentence += &format!(", about {} left", duration(eta.ceil() as u64));
    }
    sentence
}

/// What became of a job, in a line.
pub(super) fn receipt(job: &Value) -> String {
    let mut receipt = format!(
        "{} {} {}",
        text(&job["kind"]),
        text(&job["id"]),
        text(&job["state"])
    );
    for (name, count) in job["counts"].as_object().into_iter().flatten() {
        receipt += &format!(", {name} {}", grouped(count.as_u64().unwrap_or(0)));
    }
    receipt
}

/// `1,000,000`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5_999 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3_600)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_a_sentence() {
        let job = json!({ "kind": "import", "state": "running", "progress": {
            "done": 412_380, "total": 1_000_000, "unit": "rows", "rate": 58_012.3, "eta_seconds": 9.2 } });
        assert_eq!(
            sentence(&job),
            "import: 412,380 of 1,000,000 rows, 58,012 rows/s, about 10 s left"
        );
        assert_eq!((grouped(7).as_str(), grouped(1_000).as_str()), ("7", "1,000"));
        assert_eq!(
            (duration(120).as_str(), duration(7_201).as_str()),
            ("2 min", "3 h")
        );
    }
}
