//! The lines of an export: RFC 4180, times in UTC, and no cell that a spreadsheet would take for a formula.
//!
//! Invariant: a cell never begins with one of [`RISKY`]. An apostrophe goes before one that would, as OWASP's advice on
//! CSV injection has it; a program that reads the file takes it off again.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::coupon::{Coupon, redeem::Redemption};

/// The columns of coupons.
pub(super) const COUPONS: &str = "code,state,assigned_user_id,assigned_at,locked_until,redemptions_used,\
     redemptions_allowed,expires_at,created_at,updated_at,metadata\r\n";

/// The columns of redemptions.
pub(super) const REDEMPTIONS: &str =
    "id,code,user_id,redeemed_at,kind,reverses_id,redeemed_by,rolled_back_at,metadata\r\n";

/// What a spreadsheet begins a formula with, or drops to find one behind it.
const RISKY: [char; 7] = ['=', '+', '-', '@', '\t', '\r', '\n'];

/// Appends the line of a coupon.
pub(super) fn coupon(csv: &mut String, coupon: &Coupon) {
    let mut line = Line::begin(csv);
    line.cell(&coupon.code);
    line.cell(coupon.state.as_str());
    line.id(coupon.assigned_user_id);
    line.time(coupon.assigned_at);
    line.time(coupon.locked_until);
    line.number(coupon.redemptions_used);
    line.number(coupon.redemptions_allowed);
    line.time(coupon.expires_at);
    line.time(Some(coupon.created_at));
    line.time(Some(coupon.updated_at));
    line.fields(&coupon.metadata);
    line.end();
}

/// Appends the line of a redemption or rollback.
pub(super) fn redemption(csv: &mut String, redemption: &Redemption) {
    let mut line = Line::begin(csv);
    line.id(Some(redemption.id));
    line.cell(&redemption.code);
    line.id(Some(redemption.user_id));
    line.time(Some(redemption.redeemed_at));
    line.cell(&redemption.kind);
    line.id(redemption.reverses_id);
    line.id(Some(redemption.redeemed_by));
    line.time(redemption.rolled_back_at);
    line.fields(&redemption.metadata);
    line.end();
}

/// A line that is being written; every cell as a spreadsheet may read it.
pub(crate) struct Line<'a> {
    csv: &'a mut String,
    first: bool,
}

impl<'a> Line<'a> {
    pub(crate) fn begin(csv: &'a mut String) -> Self {
        Self { csv, first: true }
    }

    pub(crate) fn cell(&mut self, text: &str) {
        if !std::mem::take(&mut self.first) {
            self.csv.push(',');
        }
        let risky = text.starts_with(RISKY);
        if !risky && !text.contains(['"', ',', '\r', '\n']) {
            self.csv.push_str(text);
            return;
        }
        self.csv.push('"');
        if risky {
            self.csv.push('\'');
        }
        for part in text.split_inclusive('"') {
            self.csv.push_str(part);
            if part.ends_with('"') {
                self.csv.push('"');
            }
        }
        self.csv.push('"');
    }

    fn id(&mut self, id: Option<Uuid>) {
        match id {
            Some(id) => self.cell(id.hyphenated().encode_lower(&mut Uuid::encode_buffer())),
            None => self.cell(""),
        }
    }

    fn time(&mut self, time: Option<DateTime<Utc>>) {
        match time {
            Some(time) => self.cell(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => self.cell(""),
        }
    }

    pub(crate) fn number(&mut self, number: i32) {
        self.cell(&number.to_string());
    }

    /// Free-form fields as JSON; none are an empty cell.
    fn fields(&mut self, fields: &serde_json::Value) {
        match fields.as_object() {
            Some(members) if members.is_empty() => self.cell(""),
            _ => self.cell(&fields.to_string()),
        }
    }

    pub(crate) fn end(self) {
        self.csv.push_str("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(texts: &[&str]) -> String {
        let mut csv = String::new();
        let mut line = Line::begin(&mut csv);
        for text in texts {
            line.cell(text);
        }
        line.end();
        csv
    }

    #[test]
    fn what_a_spreadsheet_takes_for_a_formula_gets_an_apostrophe() {
        for start in RISKY {
            let text = format!("{start}1+1");
            assert_eq!(cells(&[&text]), format!("\"'{start}1+1\"\r\n"), "{start:?}");
            assert_eq!(
                cells(&["A", &text]),
                format!("A,\"'{start}1+1\"\r\n"),
                "{start:?}"
            );
        }
        assert_eq!(cells(&["1-1", "A=B", "a@b"]), "1-1,A=B,a@b\r\n");
    }

    #[test]
    fn quotes_commas_and_line_ends_are_quoted() {
        assert_eq!(
            cells(&["a\"b", "\"", "c,d", "e\nf", ""]),
            "\"a\"\"b\",\"\"\"\",\"c,d\",\"e\nf\",\r\n"
        );
    }
}
