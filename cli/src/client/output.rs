//! Printing: data to stdout, as text for people or as JSON for programs.
//!
//! Invariant: colour only on a terminal, and never with NO_COLOR (no-color.org).

use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::text;

/// How to print.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) json: bool,
    colour: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: !json && !forbidden && std::io::stdout().is_terminal(),
        }
    }

    /// One object: as JSON, or as this text.
    pub(super) fn object(&self, object: &Value, text: impl FnOnce() -> String) {
        if self.json {
            line(&object.to_string());
        } else {
            line(&text());
        }
    }

    /// One object with all its members, one on a line.
    pub(super) fn members(&self, object: &Value) {
        self.object(object, || {
            let members = object.as_object().into_iter().flatten();
            let lines: Vec<String> = members
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| match value.as_str() {
                    Some(text) => format!("{name:<26} {text}"),
                    None => format!("{name:<26} {value}"),
                })
                .collect();
            lines.join("\n")
        });
    }

    /// One row of a list: as JSON, or these cells with their widths. Says whether anybody still reads.
    pub(super) fn row(&self, object: &Value, cells: &[(&str, usize)]) -> bool {
        if self.json {
            return line(&object.to_string());
        }
        let mut row = String::new();
        for (cell, width) in cells {
            // The width is that of the text: what colours it has none.
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()) + 2);
            row += &format!("{}{gap}", self.painted(cell));
        }
        line(row.trim_end())
    }

    /// A word in the colour of the state that it names.
    fn painted(&self, word: &str) -> String {
        let colour = match word {
            "succeeded" | "redeemed" | "active" => 32,
            "partially_succeeded" | "locked" | "paused" => 33,
            "running" | "assigned" => 34,
            "failed" => 31,
            _ => return word.to_owned(),
        };
        if self.colour {
            format!("\x1b[{colour}m{word}\x1b[0m")
        } else {
            word.to_owned()
        }
    }
}

/// A line of data; says whether anybody still reads.
pub(super) fn line(line: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_ok()
}

/// A member of an object as a cell.
pub(super) fn cell<'a>(object: &'a Value, name: &str) -> &'a str {
    text(&object[name])
}
