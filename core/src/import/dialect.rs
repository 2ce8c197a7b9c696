//! The dialect of a file, from its head: what stands between fields, and which column means what.
//!
//! Invariant: the dialect is decided once, before the job is accepted, from at most [`HEAD_BYTES`] of text, and kept
//! with the import; a file whose codes cannot be found is refused at once (`csv_header_missing`).

use serde::{Deserialize, Serialize};

use super::{
    Settings,
    records::{MAX_COLUMNS, Next, Place, Records},
    report::{OWN_COLUMNS, ends_with_own_columns},
};
use crate::error::{Code, Error, Refusal, Result};

/// How much of the text is looked at.
pub const HEAD_BYTES: usize = 64 << 10;

/// What may stand between fields, likelier first.
pub const DELIMITERS: [char; 4] = [',', ';', '\t', '|'];

/// Names of the column of codes, likelier first.
const CODE_NAMES: [&str; 6] = ["code", "voucher", "coupon", "codigo", "código", "co\u{301}digo"];

/// Names of the column of e-mail addresses, likelier first.
const EMAIL_NAMES: [&str; 4] = ["email", "e-mail", "user_email", "mail"];

/// Records that must agree on their number of fields for a delimiter to be believed.
const SAMPLE: usize = 50;

/// How a file is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Between fields.
    pub delimiter: char,
    /// The names as given; `None` when there is no header.
    pub header: Option<Vec<String>>,
    /// How many columns there are.
    pub width: usize,
    /// The column of codes, from 0 as all that follow.
    pub code: usize,
    /// The column of the holder's e-mail address.
    pub user_email: Option<usize>,
    /// The column of the time of expiry.
    pub expires_at: Option<usize>,
    /// The column of the number of uses.
    pub max_redemptions: Option<usize>,
    /// The column of a JSON object of metadata.
    pub metadata: Option<usize>,
    /// Columns that become metadata, with the names they get.
    pub extra: Vec<(usize, String)>,
    /// Where the first record of data begins, in bytes.
    pub offset: i64,
    /// The physical line of that place.
    pub line: i64,
}

impl Layout {
    /// The layout of a plain list: one code per record, no header.
    pub fn list() -> Self {
        Self {
            delimiter: ',',
            header: None,
            width: 1,
            code: 0,
            user_email: None,
            expires_at: None,
            max_redemptions: None,
            metadata: None,
            extra: Vec::new(),
            offset: 0,
            line: 1,
        }
    }

    /// Where the first record of data begins.
    pub fn start(&self) -> Place {
        Place {
            offset: self.offset,
            line: self.line,
        }
    }

    /// A column's name for people: as the header has it, `code` or the number from 1 without one.
    pub fn name(&self, column: usize) -> String {
        match &self.header {
            Some(header) => header.get(column).cloned().unwrap_or_default(),
            None if column == self.code => "code".to_owned(),
            None => (column + 1).to_string(),
        }
    }

    /// The delimiter as the parser wants it.
    pub fn delimiter_byte(&self) -> u8 {
        u8::try_from(self.delimiter).unwrap_or(b',')
    }
}

/// A delimiter by its character or by name (`comma`, `semicolon`, `tab`, `pipe`).
///
/// # Errors
/// `validation_failed`.
pub fn parse_delimiter(text: &str) -> Result<char> {
    let named = match text {
        "comma" => Some(','),
        "semicolon" => Some(';'),
        "tab" | "\\t" => Some('\t'),
        "pipe" => Some('|'),
        _ => None,
    };
    let mut characters = text.chars();
    let single = characters.next().filter(|_| characters.next().is_none());
    named
        .or(single)
        .filter(|delimiter| DELIMITERS.contains(delimiter))
        .ok_or_else(|| {
            Error::invalid(
                "?delimiter",
                "unknown",
                "The delimiter is one of comma, semicolon, tab and pipe, by character or by name.",
            )
        })
}

/// Finds the dialect of a text from its head. `whole` says that the head is all of it.
///
/// # Errors
/// `csv_header_missing` when no column is known to hold the codes; `validation_failed` when a setting contradicts the
/// file.
pub fn detect(head: &[u8], whole: bool, settings: &Settings) -> Result<Layout> {
    detect_named(head, whole, settings, &CODE_NAMES)
}

/// The same for a text of e-mail addresses: the column of codes is theirs.
///
/// # Errors
/// As for [`detect`].
pub fn detect_emails(head: &[u8], whole: bool, settings: &Settings) -> Result<Layout> {
    let mut layout = detect_named(head, whole, settings, &EMAIL_NAMES)?;
    if layout.header.is_none() {
        // A report of what is wrong names its columns, so that it can be sent again.
        let name = |column: usize| match column {
            column if column == layout.code => "email".to_owned(),
            column => (column + 1).to_string(),
        };
        layout.header = Some((0..layout.width).map(name).collect());
    }
    Ok(layout)
}

fn detect_named(
    head: &[u8],
    whole: bool,
    settings: &Settings,
    names: &'static [&'static str],
) -> Result<Layout> {
    let (after_sep, told) = separator_line(head);
    let body = &head[usize::try_from(after_sep.offset).unwrap_or(0)..];
    if let Some(delimiter) = settings.delimiter.or(told) {
        return layout(&Sample::read(body, whole, delimiter, after_sep), settings, names);
    }
    let samples = DELIMITERS.map(|delimiter| Sample::read(body, whole, delimiter, after_sep));
    // The one with a known header and the most columns; else the first that cuts every record alike; else there is one
    // column, and a comma cuts nothing.
    let named = samples
        .iter()
        .filter(|sample| sample.names_column(settings, names))
        .rev()
        .max_by_key(|sample| sample.first().len());
    let even = samples
        .iter()
        .filter(|sample| sample.is_even())
        .rev()
        .max_by_key(|sample| sample.first().len());
    layout(named.or(even).unwrap_or(&samples[0]), settings, names)
}

/// Excel's `sep=;` in the first line: where the text goes on, and the delimiter.
fn separator_line(head: &[u8]) -> (Place, Option<char>) {
    let end = head
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
        .unwrap_or(head.len());
    let line = head[..end].trim_ascii_start();
    let line = line.strip_prefix(b"\"").unwrap_or(line);
    let told = match line {
        [s, e, p, b'=', delimiter, rest @ ..]
            if [*s, *e, *p].eq_ignore_ascii_case(b"sep") && matches!(rest.trim_ascii(), b"" | b"\"") =>
        {
            Some(char::from(*delimiter)).filter(|delimiter| DELIMITERS.contains(delimiter))
        }
        _ => None,
    };
    if told.is_none() {
        return (Place::START, None);
    }
    let skip = match head[end..] {
        [b'\r', b'\n', ..] => 2,
        [_, ..] => 1,
        [] => 0,
    };
    let place = Place {
        offset: i64::try_from(end + skip).unwrap_or(0),
        line: if skip == 0 { 1 } else { 2 },
    };
    (place, told)
}

/// The first records as one delimiter cuts them.
struct Sample {
    delimiter: char,
    records: Vec<Vec<String>>,
    /// The lengths agree, or nearly.
    counts: Vec<usize>,
    /// Whether the first record has more columns than are read.
    too_wide: bool,
    /// Whether a first record begins in the head but does not end there.
    too_long: bool,
    start: Place,
    after_first: Place,
}

impl Sample {
    fn read(body: &[u8], whole: bool, delimiter: char, start: Place) -> Self {
        let mut reader = Records::new(u8::try_from(delimiter).unwrap_or(b','), start);
        let mut sample = Self {
            delimiter,
            records: Vec::new(),
            counts: Vec::new(),
            too_wide: false,
            too_long: !whole && body.iter().any(|byte| !matches!(byte, b'\r' | b'\n')),
            start,
            after_first: start,
        };
        let mut piece = body;
        while sample.counts.len() < SAMPLE {
            let Next::Record(record) = reader.next(&mut piece, whole) else {
                break;
            };
            sample.counts.push(record.len());
            if sample.records.is_empty() {
                (sample.too_wide, sample.too_long) = (record.too_wide, false);
                let fields = record
                    .fields()
                    .map(|field| String::from_utf8_lossy(field).into_owned())
                    .collect();
                sample.records.push(fields);
                sample.after_first = reader.place();
            }
        }
        sample
    }

    fn first(&self) -> &[String] {
        self.records.first().map_or(&[], Vec::as_slice)
    }

    fn names_column(&self, settings: &Settings, names: &[&str]) -> bool {
        settings.has_header != Some(false) && find_code(self.first(), settings, names).is_some()
    }

    /// Several columns, and every record has as many.
    fn is_even(&self) -> bool {
        let width = self.first().len();
        width > 1 && self.counts.iter().all(|count| *count == width)
    }
}

/// A name made comparable.
fn fold(name: &str) -> String {
    name.trim()
        .trim_matches(['"', '\'', '\u{feff}'])
        .trim()
        .to_lowercase()
}

fn find(header: &[String], name: &str) -> Option<usize> {
    let name = fold(name);
    header.iter().position(|column| fold(column) == name)
}

/// The column of codes by the names in a header.
fn find_code(header: &[String], settings: &Settings, names: &[&str]) -> Option<usize> {
    match &settings.column {
        Some(column) => find(header, column),
        None => names.iter().find_map(|name| find(header, name)),
    }
}

/// A column's number from 1, as an index from 0.
fn find_numbered(width: usize, settings: &Settings) -> Option<usize> {
    let number: usize = settings.column.as_deref()?.trim().parse().ok()?;
    number.checked_sub(1).filter(|index| *index < width)
}

fn layout(sample: &Sample, settings: &Settings, names: &[&str]) -> Result<Layout> {
    if sample.too_long {
        let detail = format!(
            "The first record is longer than {} KiB: it has far too many columns, or a quote in it is open.",
            HEAD_BYTES >> 10
        );
        return Err(Error::invalid("", "record_too_long", detail));
    }
    if sample.too_wide {
        let detail = format!("The file has more than {MAX_COLUMNS} columns.");
        return Err(Error::invalid("", "too_many_columns", detail));
    }
    let first = sample.first();
    let width = first.len().max(1);
    let named = if settings.has_header == Some(false) {
        None
    } else {
        find_code(first, settings, names)
    };
    let numbered = find_numbered(width, settings);
    let (code, has_header) = match (named, numbered) {
        (Some(code), _) => (code, true),
        (None, Some(code)) => (
            code,
            settings
                .has_header
                .unwrap_or_else(|| has_known_name(first, names)),
        ),
        (None, None) if settings.column.is_some() => return Err(header_missing(None)),
        (None, None) if width == 1 => (0, settings.has_header.unwrap_or(false)),
        (None, None) => return Err(header_missing(Some(names))),
    };
    let mut layout = Layout {
        delimiter: sample.delimiter,
        width,
        code,
        ..Layout::list()
    };
    let start = if has_header {
        sample.after_first
    } else {
        sample.start
    };
    (layout.offset, layout.line) = (start.offset, start.line);
    if has_header {
        let other = |name| find(first, name).filter(|index| *index != code);
        layout.user_email = other("user_email");
        layout.expires_at = other("expires_at");
        layout.max_redemptions = other("max_redemptions");
        layout.metadata = other("metadata");
        let known = [
            layout.user_email,
            layout.expires_at,
            layout.max_redemptions,
            layout.metadata,
        ];
        if settings.metadata_columns {
            // A report that is sent again brings its own columns, which say nothing of the codes.
            let own = if ends_with_own_columns(first) {
                OWN_COLUMNS.len()
            } else {
                0
            };
            layout.extra = first[..width - own]
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != code && !known.contains(&Some(*index)))
                .map(|(index, name)| (index, name.trim().replace('\0', "\u{fffd}")))
                .filter(|(_, name)| !name.is_empty())
                .collect();
        }
        layout.header = Some(
            first
                .iter()
                .map(|name| name.trim().replace('\0', "\u{fffd}"))
                .collect(),
        );
    }
    Ok(layout)
}

fn has_known_name(header: &[String], names: &[&str]) -> bool {
    names
        .iter()
        .chain(&["user_email", "expires_at", "max_redemptions", "metadata"])
        .any(|name| find(header, name).is_some())
}

/// With the names that were looked for, unless the caller named the column.
fn header_missing(names: Option<&[&str]>) -> Error {
    let detail = match names {
        None => {
            "The file has no column of that name or number in its first record; name one that it has with `column`."
                .to_owned()
        }
        Some(names) => format!(
            "The file has several columns and none is called {}; name the one that is meant with `column`.",
            names.join(", ")
        ),
    };
    Refusal::new(Code::CsvHeaderMissing, detail).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Layout {
        detect(text.as_bytes(), true, &Settings::default()).unwrap()
    }

    fn refused(text: &str, settings: &Settings) -> Code {
        detect(text.as_bytes(), true, settings).unwrap_err().code()
    }

    #[test]
    fn usual_files_are_understood() {
        let excel = found("Name;Código;expires_at\r\n\"A; B\";\"X1\";\r\n");
        assert_eq!((excel.delimiter, excel.code, excel.expires_at), (';', 1, Some(2)));
        assert_eq!((excel.offset, excel.line), (25, 2));
        let tabs = found("id\tvoucher\tuser_email\n1\tA,B\tx@y.z\n");
        assert_eq!((tabs.delimiter, tabs.code, tabs.user_email), ('\t', 1, Some(2)));
        let export = found("id,\"CODE \",metadata,max_redemptions\n1,A1,\"{\"\"a\"\": 1}\",3\n");
        assert_eq!(
            (export.code, export.metadata, export.max_redemptions),
            (1, Some(2), Some(3))
        );
        let pipes = found("coupon|note\nA|b\n");
        assert_eq!((pipes.delimiter, pipes.width), ('|', 2));
    }

    #[test]
    fn one_column_needs_no_header() {
        let list = found("A1\nB2\n");
        assert_eq!(
            (list.header.as_ref(), list.code, list.offset, list.line),
            (None, 0, 0, 1)
        );
        let named = found("\n\ncode\nA1\n");
        assert_eq!((named.header.is_some(), named.line), (true, 4));
        assert_eq!(found("").width, 1);
    }

    #[test]
    fn several_columns_with_no_known_name_are_refused_unless_told() {
        let text = "id,promo\n1,A1\n2,B2\n";
        assert_eq!(refused(text, &Settings::default()), Code::CsvHeaderMissing);
        let told = |column: &str, has_header| Settings {
            column: Some(column.into()),
            has_header,
            ..Settings::default()
        };
        let by_name = detect(text.as_bytes(), true, &told(" PROMO", None)).unwrap();
        assert_eq!((by_name.code, by_name.line), (1, 2));
        let by_number = detect(text.as_bytes(), true, &told("2", Some(false))).unwrap();
        assert_eq!((by_number.code, by_number.line), (1, 1));
        assert_eq!(refused(text, &told("3", Some(false))), Code::CsvHeaderMissing);
        assert_eq!(refused(text, &told("nothing", None)), Code::CsvHeaderMissing);
    }

    #[test]
    fn a_first_record_without_end_or_with_too_many_columns_is_refused() {
        let reason = |text: &str, whole| match detect(text.as_bytes(), whole, &Settings::default()) {
            Err(Error::Invalid(faults)) => faults[0].code,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(&"x".repeat(HEAD_BYTES), false), "record_too_long");
        assert_eq!(
            reason(&format!("\n\"{}", "a,b\n".repeat(9)), false),
            "record_too_long"
        );
        assert_eq!(
            reason(&format!("code{}\nA\n", ",".repeat(MAX_COLUMNS)), true),
            "too_many_columns"
        );
        assert_eq!(
            reason(&format!("a{}\nA\n", ",b".repeat(5_000)), true),
            "too_many_columns"
        );
        assert_eq!(found("\"a\nb").width, 1); // read to its end, which is told of when it is read
        assert_eq!(detect(b"\n\r\n", false, &Settings::default()).unwrap().width, 1);
    }

    #[test]
    fn the_separator_line_of_excel_is_obeyed() {
        let layout = found("sep=;\r\ncode;note\r\nA;b,c\r\n");
        assert_eq!((layout.delimiter, layout.line, layout.offset), (';', 3, 18));
        assert_eq!(found("\"sep=|\"\ncode|x\n").delimiter, '|');
    }

    #[test]
    fn unknown_columns_become_metadata_when_asked() {
        let settings = Settings {
            metadata_columns: true,
            ..Settings::default()
        };
        let layout = detect(b"code,Shop,,user_email\nA,b,c,d\n", true, &settings).unwrap();
        assert_eq!(layout.extra, [(1, "Shop".to_owned())]);
    }

    #[test]
    fn delimiters_have_names() {
        assert_eq!(parse_delimiter("tab").unwrap(), '\t');
        assert_eq!(parse_delimiter(";").unwrap(), ';');
        assert!(parse_delimiter(":").is_err() && parse_delimiter("").is_err());
    }
}
