//! What was measured, as a table.

use std::{fmt, fs::OpenOptions, io::Write, path::Path};

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Line {
    /// Which figure.
    pub figure: &'static str,
    /// What was measured, in words.
    pub what: String,
    /// The figure with its unit.
    pub measured: String,
    /// The limit with its unit.
    pub limit: String,
    /// What counts: a ratio, or a time.
    pub result: String,
    /// What it must be.
    pub must: &'static str,
    /// Whether it is.
    pub met: bool,
}

/// The lines of one run.
#[derive(Debug)]
pub(crate) struct Report {
    lines: Vec<Line>,
    machine: String,
    command: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let memory = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
            .map_or_else(String::new, |kib| format!(", {} GiB", kib >> 20));
        let commit = output("git", &["rev-parse", "--short", "HEAD"]);
        let changed = if output("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            ""
        } else {
            " with changes"
        };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            lines: Vec::new(),
            machine: format!(
                "{}, commit {commit}{changed}, {cores} cores{memory}",
                output("date", &["-u", "+%F %H:%M UTC"])
            ),
            command: format!("./x bench {}", arguments.join(" ")),
        }
    }

    /// Adds a line, and shows it at once.
    pub(crate) fn add(&mut self, line: Line) {
        eprintln!(
            "{}: {}: {} ({}; limit {}; must {})",
            line.figure, line.what, line.result, line.measured, line.limit, line.must
        );
        self.lines.push(line);
    }

    pub(crate) fn append_to(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        write!(file, "{self}\n\n")?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "`{}` ({})\n", self.command.trim_end(), self.machine)?;
        writeln!(
            f,
            "| figure | what | measured | limit in the same run | result | must | met |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for line in &self.lines {
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} |",
                line.figure,
                line.what,
                line.measured,
                line.limit,
                line.result,
                line.must,
                if line.met { "yes" } else { "no" }
            )?;
        }
        Ok(())
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    std::process::Command::new(program)
        .args(arguments)
        .output()
        .map_or_else(
            |_| String::new(),
            |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        )
}

/// The middle of the values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
