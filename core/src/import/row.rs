//! One record of a file, validated by itself: a row to be imported, or the fault that keeps it out.
//!
//! Invariant: what can be told from the record alone is told here, always the same; what needs the database (users,
//! duplicates, limits) is told by [`super::plan`].

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use uuid::Uuid;

use super::{
    clock,
    dialect::Layout,
    records::{MAX_COLUMNS, Record},
};
use crate::coupon::code::{Code, CodeFault};

/// Uses that a coupon may have, as the database bounds them for a book.
const MAX_REDEMPTIONS: i32 = 1_000_000;

/// The largest metadata of a coupon, in bytes of JSON.
const MAX_METADATA: usize = 16 << 10;

/// The longest e-mail address (RFC 5321, as the table of users bounds it).
const MAX_EMAIL: usize = 254;

/// What of a book the reading of a row needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whether case, spaces and dashes make codes different.
    pub exact_codes: bool,
    /// Uses of a coupon whose row says nothing.
    pub redemptions_per_coupon: i32,
    /// The zone of local times.
    pub zone: Tz,
}

/// A record that is good by itself.
#[derive(Clone)]
pub struct Row {
    code: Code,
    exact: bool,
    /// Uses in all.
    pub allowed: i32,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    more: Option<Box<More>>,
}

/// What few rows have.
#[derive(Clone, Default)]
struct More {
    email: Option<Box<str>>,
    holder: Option<Uuid>,
    metadata: Option<Box<str>>,
}

impl Row {
    /// What makes the code equal to others.
    pub fn key(&self) -> &str {
        self.code.key(self.exact)
    }

    /// The code as shown, when it differs from the key.
    pub fn shown(&self) -> Option<&str> {
        self.code.shown_beside_key(self.exact)
    }

    /// Who is to hold it, by e-mail address.
    pub fn email(&self) -> Option<&str> {
        self.more.as_ref()?.email.as_deref()
    }

    /// Who is to hold it, once that is known.
    pub fn holder(&self) -> Option<Uuid> {
        self.more.as_ref()?.holder
    }

    /// Says who is to hold it.
    pub fn set_holder(&mut self, user_id: Uuid) {
        self.more.get_or_insert_default().holder = Some(user_id);
    }

    /// A JSON object.
    pub fn metadata(&self) -> Option<&str> {
        self.more.as_ref()?.metadata.as_deref()
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Row(…)") // it holds a code
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The column, from 0; `None` when it is the whole record.
    pub column: Option<usize>,
    /// The stable word.
    pub reason: &'static str,
    /// The same for people; holds no value.
    pub detail: Cow<'static, str>,
}

impl Fault {
    pub(crate) fn new(
        column: Option<usize>,
        reason: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            column,
            reason,
            detail: detail.into(),
        }
    }
}

/// Reads a record.
///
/// # Errors
/// See [`Fault`]; the code's own fault comes before those of the other columns.
pub fn read(record: &Record<'_>, layout: &Layout, rules: &Rules) -> Result<Row, Fault> {
    if record.too_wide || (layout.width..record.len()).any(|index| !record.field(index).is_empty()) {
        return Err(Fault::new(
            None,
            "too_many_columns",
            if record.too_wide {
                format!("The record has more than {MAX_COLUMNS} columns.")
            } else {
                format!(
                    "The record has {} columns where the file has {}; a field with the delimiter in it needs quotes.",
                    record.len(),
                    layout.width
                )
            },
        ));
    }
    let code = read_code(record.field(layout.code), layout.code)?;
    let email = optional(record, layout.user_email, |text| {
        if text.len() > MAX_EMAIL || text.contains('\0') {
            return Err(("unknown_user", "No user has this e-mail address.".into()));
        }
        Ok(Box::from(text))
    })?;
    let expires_at = optional(record, layout.expires_at, |text| {
        clock::parse(text, rules.zone).ok_or((
            "bad_date",
            "This is no time as in 2026-12-31, 2026-12-31 18:00 or 2026-12-31T18:00:00Z.".into(),
        ))
    })?;
    let allowed = optional(record, layout.max_redemptions, |text| {
        text.parse::<i32>()
            .ok()
            .filter(|uses| (1..=MAX_REDEMPTIONS).contains(uses))
            .ok_or((
                "bad_number",
                format!("This is no number from 1 to {MAX_REDEMPTIONS}.").into(),
            ))
    })?
    .unwrap_or(rules.redemptions_per_coupon);
    let metadata = read_metadata(record, layout)?;
    let more = (email.is_some() || metadata.is_some()).then(|| {
        Box::new(More {
            email,
            holder: None,
            metadata,
        })
    });
    Ok(Row {
        code,
        exact: rules.exact_codes,
        allowed,
        expires_at,
        more,
    })
}

fn read_code(field: &[u8], column: usize) -> Result<Code, Fault> {
    // Damaged text holds U+FFFD, which is no character of a code either.
    let parsed = match std::str::from_utf8(field) {
        Ok(text) => Code::parse(text),
        Err(_) => Err(CodeFault::BadCharacter),
    };
    parsed.map_err(|fault| {
        let detail = match fault {
            CodeFault::Empty => "The code is empty.",
            CodeFault::TooLong => "The code has more than 100 characters.",
            CodeFault::BadCharacter => "The code has a character that is not printable ASCII.",
        };
        Fault::new(Some(column), fault.as_str(), detail)
    })
}

/// A field of a column that need not be there. Nothing is blank, or what MySQL writes for it: `\N`, and `NULL` in files of
/// its tools.
fn optional<T>(
    record: &Record<'_>,
    column: Option<usize>,
    read: impl FnOnce(&str) -> Result<T, (&'static str, Cow<'static, str>)>,
) -> Result<Option<T>, Fault> {
    let Some(column) = column else { return Ok(None) };
    let text = String::from_utf8_lossy(record.field(column));
    match text.trim() {
        "" | "\\N" | "NULL" => Ok(None),
        text => read(text)
            .map(Some)
            .map_err(|(reason, detail)| Fault::new(Some(column), reason, detail)),
    }
}

fn read_metadata(record: &Record<'_>, layout: &Layout) -> Result<Option<Box<str>>, Fault> {
    let object = optional(record, layout.metadata, |text| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
            .map_err(|_| ("bad_metadata", "This is no JSON object.".into()))
    })?;
    if object.is_none() && layout.extra.is_empty() {
        return Ok(None);
    }
    let mut object = object.unwrap_or_default();
    for (column, name) in &layout.extra {
        let field = record.field(*column);
        if field.contains(&0) {
            return Err(Fault::new(
                Some(*column),
                "bad_character",
                "The field has a NUL character.",
            ));
        }
        if !matches!(field, b"" | b"\\N") && !object.contains_key(name) {
            object.insert(name.clone(), String::from_utf8_lossy(field).into_owned().into());
        }
    }
    if object.is_empty() {
        return Ok(None);
    }
    let json = serde_json::Value::Object(object).to_string();
    // JSON in the database cannot hold NUL, escaped or not.
    if json.contains("\\u0000") && holds_nul(&json) {
        return Err(Fault::new(
            layout.metadata,
            "bad_metadata",
            "The metadata holds a NUL character.",
        ));
    }
    if json.len() > MAX_METADATA {
        return Err(Fault::new(
            layout.metadata,
            "bad_metadata",
            "The metadata is longer than 16 KiB.",
        ));
    }
    Ok(Some(json.into_boxed_str()))
}

/// Whether JSON text escapes a NUL: `\u0000` whose backslash is not itself escaped.
fn holds_nul(json: &str) -> bool {
    json.match_indices("\\u0000")
        .any(|(at, _)| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{
        Settings, dialect,
        records::{Next, Records},
    };

    const RULES: Rules = Rules {
        exact_codes: false,
        redemptions_per_coupon: 2,
        zone: Tz::UTC,
    };

    fn read_all(text: &str, metadata_columns: bool) -> Vec<Result<Row, Fault>> {
        let settings = Settings {
            metadata_columns,
            ..Settings::default()
        };
        let layout = dialect::detect(text.as_bytes(), true, &settings).unwrap();
        let mut records = Records::new(layout.delimiter_byte(), layout.start());
        let mut piece = &text.as_bytes()[usize::try_from(layout.offset).unwrap()..];
        let mut rows = Vec::new();
        while let Next::Record(record) = records.next(&mut piece, true) {
            rows.push(read(&record, &layout, &RULES));
        }
        rows
    }

    #[test]
    fn columns_are_understood() {
        let rows = read_all(
            "code,user_email,expires_at,max_redemptions,metadata,shop\n\
             ab-1, Ann@example.com ,2026-01-01,5,\"{\"\"a\"\":1}\",x\n\
             B2,,,,,\n\
             C3\n\
             D4,\\N,NULL,\\N,NULL,\\N\n",
            true,
        );
        let first = rows[0].as_ref().unwrap();
        assert_eq!((first.key(), first.shown()), ("AB1", Some("ab-1")));
        assert_eq!((first.email(), first.allowed), (Some("Ann@example.com"), 5));
        assert_eq!(first.metadata(), Some(r#"{"a":1,"shop":"x"}"#));
        let second = rows[1].as_ref().unwrap();
        assert_eq!(
            (second.email(), second.expires_at, second.allowed),
            (None, None, 2)
        );
        assert_eq!(second.metadata(), None);
        assert_eq!(rows[2].as_ref().unwrap().key(), "C3");
        let last = rows[3].as_ref().unwrap();
        assert_eq!((last.email(), last.expires_at, last.allowed), (None, None, 2));
        assert_eq!(last.metadata(), None);
    }

    #[test]
    fn each_fault_has_its_reason_and_column() {
        let long = "x".repeat(101);
        let text = format!(
            "code,expires_at,max_redemptions,metadata\n\
             \"\",,,\n{long},,,\nñ,,,\na\0b,,,\nA,soon,,\nA,,0,\nA,,x,\nA,,,[1]\nA,,,\"{{\"\"a\"\":\"\"\\u0000\"\"}}\"\nA,,,,x\n"
        );
        let faults: Vec<(Option<usize>, &str)> = read_all(&text, false)
            .into_iter()
            .map(|row| row.map_err(|fault| (fault.column, fault.reason)).unwrap_err())
            .collect();
        assert_eq!(
            faults,
            [
                (Some(0), "empty"),
                (Some(0), "too_long"),
                (Some(0), "bad_character"),
                (Some(0), "bad_character"),
                (Some(1), "bad_date"),
                (Some(2), "bad_number"),
                (Some(2), "bad_number"),
                (Some(3), "bad_metadata"),
                (Some(3), "bad_metadata"),
                (None, "too_many_columns"),
            ]
        );
        assert!(!holds_nul(r#"{"a":"\\u0000"}"#) && holds_nul(r#"{"a":"\\\u0000"}"#));
    }
}
