//! The records of one step, read from the kept text: where they lie, what they say, and which cannot be read.
//!
//! Invariant: a chunk ends between two records, so its place is where the next step goes on; what cannot be read at all
//! gets a step of its own, which leaves the place where it is. What a record says is the caller's: a coupon, a member.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    dialect::Layout,
    records::{MAX_RECORD, Next, Place, Record, Records},
    row::Fault,
    text,
    write::ErrorLine,
};
use crate::error::Result;

/// Text of a step, when records are long.
pub(super) const STEP_BYTES: i64 = 4 << 20;

/// The most of a value that an error line shows, in characters.
const SHOWN_VALUE: usize = 200;

/// A row with the place of its record in the chunk.
pub(crate) struct Numbered<R> {
    /// Which record of the chunk.
    pub(crate) record: usize,
    /// What it says.
    pub(crate) row: R,
}

/// The text that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// Its upload.
    pub(crate) upload_id: Uuid,
    /// Its length.
    pub(crate) text_bytes: i64,
    /// Between fields.
    pub(crate) delimiter: u8,
    /// Records of a step.
    pub(crate) step_records: usize,
}

/// Reads records from `place` on until the step is full; `read` makes a row of each.
///
/// # Errors
/// `expired` when the text is no longer kept.
pub(crate) async fn read<R>(
    connection: &mut PgConnection,
    source: &Source,
    place: Place,
    read: impl Fn(&Record<'_>) -> Result<R, Fault>,
) -> Result<Chunk<R>> {
    let mut chunk = Chunk::new(place, source.step_records);
    let mut records = Records::new(source.delimiter, place);
    while !chunk.is_full(place) {
        let at = records.read_to();
        let piece = if at < source.text_bytes {
            text::read(connection, source.upload_id, at).await?
        } else {
            Vec::new()
        };
        let last = at + i64::try_from(piece.len()).unwrap_or(0) >= source.text_bytes;
        if !chunk.fill(&mut records, place, &piece, last, &read) {
            break;
        }
    }
    Ok(chunk)
}

/// Reads records from `place` on out of a text that begins there, until the step is full or the text is used up. What
/// cannot be read at all is left to [`read`], and so is a record that does not end in the text.
pub(crate) fn read_piece<R>(
    source: &Source,
    place: Place,
    text: &[u8],
    read: impl Fn(&Record<'_>) -> Result<R, Fault>,
) -> Chunk<R> {
    let mut chunk = Chunk::new(place, source.step_records);
    let mut records = Records::new(source.delimiter, place);
    let last = place.offset + i64::try_from(text.len()).unwrap_or(0) >= source.text_bytes;
    chunk.fill(&mut records, place, text, last, &read);
    if matches!(chunk.end, Some(End::Stopped(_))) {
        return Chunk::new(place, source.step_records);
    }
    chunk
}

/// Why reading ended.
pub(crate) enum End {
    /// The text is used up.
    Whole,
    /// Nothing from this line on can be read.
    Stopped(i64),
}

/// The records of a step: good ones as rows, the others as faults.
pub(crate) struct Chunk<R> {
    /// Records that it may hold.
    most: usize,
    /// The good ones.
    pub(crate) rows: Vec<Numbered<R>>,
    /// What keeps others out, by record.
    pub(crate) faults: Vec<(usize, Fault)>,
    /// How many there are, good and bad.
    pub(crate) records: usize,
    /// Of each record that is kept, its line and how many fields come before its own.
    kept: Vec<(i64, usize)>,
    /// The fields of the records that are kept, one after another.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Where the next step begins.
    pub(crate) place: Place,
    /// Why reading ended, if it did.
    pub(crate) end: Option<End>,
}

impl<R> Chunk<R> {
    fn new(place: Place, most: usize) -> Self {
        Self {
            most,
            rows: Vec::new(),
            faults: Vec::new(),
            records: 0,
            kept: Vec::new(),
            bytes: Vec::new(),
            ends: Vec::new(),
            place,
            end: None,
        }
    }

    /// Takes the records of a piece until the chunk is full; says whether it goes on with the next piece.
    fn fill(
        &mut self,
        records: &mut Records,
        from: Place,
        mut piece: &[u8],
        last: bool,
        read: &impl Fn(&Record<'_>) -> Result<R, Fault>,
    ) -> bool {
        while !self.is_full(from) {
            match records.next(&mut piece, last) {
                Next::Record(record) => {
                    self.push(&record, read(&record));
                    self.place = records.place();
                }
                Next::NeedInput => return true,
                Next::End => {
                    self.place = records.place();
                    self.end = Some(End::Whole);
                    return false;
                }
                // What cannot be read gets a step of its own, which leaves the cursor where it is.
                Next::Unclosed(_) | Next::TooLong(_) if self.records > 0 => return false,
                Next::Unclosed(line) => {
                    let detail = "A quote that is opened on this line never closes.".to_owned();
                    self.stop(line, "unclosed_quote", detail);
                    return false;
                }
                Next::TooLong(line) => {
                    let detail = format!(
                        "The record that starts on this line is longer than {} KiB; a quote may be open.",
                        MAX_RECORD >> 10
                    );
                    self.stop(line, "record_too_long", detail);
                    return false;
                }
            }
        }
        false
    }

    fn is_full(&self, from: Place) -> bool {
        self.records >= self.most || self.place.offset - from.offset >= STEP_BYTES
    }

    fn push(&mut self, record: &Record<'_>, read: Result<R, Fault>) {
        if self.records == 0 {
            self.rows.reserve_exact(self.most);
            self.kept.reserve_exact(self.most);
        }
        let number = self.records;
        self.records += 1;
        self.keep(record.line, record.fields());
        match read {
            Ok(row) => self.rows.push(Numbered { record: number, row }),
            Err(fault) => self.faults.push((number, fault)),
        }
    }

    fn keep<'a>(&mut self, line: i64, fields: impl Iterator<Item = &'a [u8]>) {
        self.kept.push((line, self.ends.len()));
        for field in fields {
            self.bytes.extend_from_slice(field);
            self.ends.push(self.bytes.len());
        }
    }

    /// A record that cannot be read to its end.
    fn stop(&mut self, line: i64, reason: &'static str, detail: String) {
        self.faults.push((self.records, Fault::new(None, reason, detail)));
        self.keep(line, std::iter::empty());
        self.records += 1;
        self.end = Some(End::Stopped(line));
    }

    /// The fields of a record that is kept.
    fn fields(&self, record: usize) -> impl Iterator<Item = &[u8]> {
        let first = self.kept[record].1;
        let last = self.kept.get(record + 1).map_or(self.ends.len(), |next| next.1);
        (first..last).map(|field| {
            let begin = field.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.bytes[begin..self.ends[field]]
        })
    }

    /// The fields of a record as they were sent. What the database cannot hold (NUL) shows as U+FFFD.
    fn original(&self, record: usize) -> Vec<String> {
        let text = |field| String::from_utf8_lossy(field).replace('\0', "\u{fffd}");
        self.fields(record).map(text).collect()
    }

    /// Lets go of what good records say.
    pub(crate) fn keep_faulty(&mut self) {
        let mut faulty = Self::new(self.place, self.most);
        for (record, _) in &self.faults {
            faulty.keep(self.kept[*record].0, self.fields(*record));
        }
        (self.kept, self.bytes, self.ends) = (faulty.kept, faulty.bytes, faulty.ends);
        for (kept, (record, _)) in self.faults.iter_mut().enumerate() {
            *record = kept;
        }
    }

    /// Lets go of what the records say; where they end stays known.
    pub(crate) fn forget_records(&mut self) {
        *self = Self {
            end: self.end.take(),
            ..Self::new(self.place, self.most)
        };
    }

    /// The faults as error lines; `column` says which column is at fault.
    pub(crate) fn error_lines(
        &self,
        layout: &Layout,
        column: impl Fn(&Fault) -> Option<usize>,
    ) -> impl Iterator<Item = ErrorLine> {
        let line = move |(record, fault): &(usize, Fault)| {
            let original = self.original(*record);
            let column = column(fault);
            let value = column.and_then(|column| original.get(column));
            ErrorLine {
                line: self.kept[*record].0,
                entry: serde_json::json!({
                    "line": self.kept[*record].0,
                    "column": column.map(|column| layout.name(column)),
                    "reason": fault.reason,
                    "detail": fault.detail,
                    "value": value.map(|value| value.chars().take(SHOWN_VALUE).collect::<String>()),
                }),
                original: original.into(),
            }
        };
        self.faults.iter().map(line)
    }
}
