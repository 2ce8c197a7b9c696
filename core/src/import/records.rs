//! Records of RFC 4180 out of a text that comes in pieces, each with the physical line on which it starts.
//!
//! Invariant: how the text is cut into pieces changes nothing, and [`Records::place`] is where a new reader, given the
//! rest of the text, goes on with the same records and lines. LF, CRLF and a lone CR end a line; blank lines are
//! nothing; a quoted line break belongs to its field and counts as a line.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

/// The longest record, in bytes: what a quote that never closes may cost in memory.
pub const MAX_RECORD: usize = 1 << 20;

/// The most columns.
pub const MAX_COLUMNS: usize = 1_000;

/// A place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In bytes from the beginning.
    pub offset: i64,
    /// The physical line, from 1.
    pub line: i64,
}

impl Place {
    /// The beginning of a text.
    pub const START: Self = Self { offset: 0, line: 1 };
}

/// A record, borrowed from its reader.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The physical line on which it starts.
    pub line: i64,
    /// Whether it has more than [`MAX_COLUMNS`]; the fields beyond are lost.
    pub too_wide: bool,
    bytes: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Record<'a> {
    /// How many fields it has.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it has none, which no record is.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A field, unquoted; empty when there is none.
    pub fn field(&self, index: usize) -> &'a [u8] {
        let Some(end) = self.ends.get(index) else {
            return &[];
        };
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[begin..*end]
    }

    /// Every field, unquoted.
    pub fn fields(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, ends) = (self.bytes, self.ends);
        (0..ends.len()).map(move |index| {
            let begin = if index == 0 { 0 } else { ends[index - 1] };
            &bytes[begin..ends[index]]
        })
    }
}

/// What a reader gives.
#[derive(Debug)]
pub enum Next<'a> {
    /// A record.
    Record(Record<'a>),
    /// The piece is used up.
    NeedInput,
    /// The text is used up.
    End,
    /// The record that starts on this line has a quote that never closes.
    Unclosed(i64),
    /// The record that starts on this line is longer than [`MAX_RECORD`].
    TooLong(i64),
}

/// A reader of records.
pub struct Records {
    reader: Reader,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    filled: usize,
    ended: usize,
    at: Place,
    /// Whether the last byte was a CR, so that an LF after it is the same line's end.
    after_cr: bool,
    /// Where the record under way began.
    begun: Option<Place>,
    too_wide: bool,
}

impl Records {
    /// A reader that begins at `place`.
    pub fn new(delimiter: u8, place: Place) -> Self {
        let mut reader = ReaderBuilder::new().delimiter(delimiter).build();
        // At its very beginning the parser drops a byte order mark; there is none left, and a reader that goes on in
        // the middle must read what any other would. So let it begin with something else.
        let _ = reader.read_record(b"x\n", &mut [0; 8], &mut [0; 2]);
        Self {
            reader,
            bytes: vec![0; 1 << 10],
            ends: vec![0; 16],
            filled: 0,
            ended: 0,
            at: place,
            after_cr: false,
            begun: None,
            too_wide: false,
        }
    }

    /// Where the record after the last one given begins, or the blank lines before it.
    pub fn place(&self) -> Place {
        let at = self.begun.unwrap_or(self.at);
        if self.after_cr && self.begun.is_none() {
            // An LF may follow: whoever goes on must see both as one.
            return Place {
                offset: at.offset - 1,
                line: at.line - 1,
            };
        }
        at
    }

    /// How far the text has been read.
    pub fn read_to(&self) -> i64 {
        self.at.offset
    }

    /// The next record of `piece`, which moves on behind it. `last` says that nothing follows the piece.
    pub fn next<'a>(&'a mut self, piece: &mut &[u8], last: bool) -> Next<'a> {
        loop {
            if self.begun.is_none() {
                let blank = piece
                    .iter()
                    .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                    .count();
                self.pass(&piece[..blank]);
                *piece = &piece[blank..];
                if !piece.is_empty() {
                    self.begun = Some(self.at);
                    (self.filled, self.ended, self.too_wide) = (0, 0, false);
                }
            }
            let Some(begun) = self.begun else {
                return if last { Next::End } else { Next::NeedInput };
            };
            if piece.is_empty() && !last {
                return Next::NeedInput;
            }
            // At the end of the text a line break closes the last record, unless a quote is open.
            let at_end = piece.is_empty();
            let input: &[u8] = if at_end { b"\n" } else { piece };
            let (result, read, filled, ended) = self.reader.read_record(
                input,
                &mut self.bytes[self.filled..],
                &mut self.ends[self.ended..],
            );
            self.filled += filled;
            self.ended += ended;
            if !at_end {
                self.pass(&piece[..read]);
                *piece = &piece[read..];
            }
            if usize::try_from(self.at.offset - begun.offset).is_ok_and(|length| length > MAX_RECORD) {
                return Next::TooLong(begun.line);
            }
            match result {
                ReadRecordResult::Record => {
                    self.begun = None;
                    if self.after_cr && piece.first() == Some(&b'\n') {
                        self.pass(&piece[..1]);
                        *piece = &piece[1..];
                    }
                    return Next::Record(Record {
                        line: begun.line,
                        too_wide: self.too_wide,
                        bytes: &self.bytes[..self.filled],
                        ends: &self.ends[..self.ended],
                    });
                }
                ReadRecordResult::InputEmpty if at_end => return Next::Unclosed(begun.line),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.bytes.resize(self.bytes.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() < MAX_COLUMNS => {
                    self.ends.resize((self.ends.len() * 2).min(MAX_COLUMNS), 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    self.too_wide = true;
                    self.ended = MAX_COLUMNS - 1;
                }
                ReadRecordResult::End => return Next::End,
            }
        }
    }

    /// Counts bytes and line breaks.
    fn pass(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\r' => self.at.line += 1,
                b'\n' if !self.after_cr => self.at.line += 1,
                _ => {}
            }
            self.after_cr = *byte == b'\r';
        }
        self.at.offset += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = (i64, Vec<String>);

    fn read_all(delimiter: u8, pieces: &[&[u8]]) -> (Vec<Row>, String) {
        let mut records = Records::new(delimiter, Place::START);
        let mut rows = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let mut piece = *piece;
            let last = n + 1 == pieces.len();
            loop {
                match records.next(&mut piece, last) {
                    Next::Record(record) => rows.push((
                        record.line,
                        record
                            .fields()
                            .map(|field| String::from_utf8_lossy(field).into_owned())
                            .collect(),
                    )),
                    Next::NeedInput => break,
                    other => return (rows, format!("{other:?}")),
                }
            }
        }
        (rows, String::new())
    }

    fn rows(delimiter: u8, text: &str) -> Vec<Row> {
        read_all(delimiter, &[text.as_bytes()]).0
    }

    fn row(line: i64, fields: &[&str]) -> Row {
        (line, fields.iter().map(|field| (*field).to_owned()).collect())
    }

    const TRICKY: &str =
        "code,note\r\n\r\nA1,\"two\r\nlines, \"\"quoted\"\"\"\r\n\n\rB2,x\rC3,\n\"D\n4\",\"\"\nE5";

    #[test]
    fn lines_are_physical_ones_and_blank_lines_are_nothing() {
        assert_eq!(
            rows(b',', TRICKY),
            [
                row(1, &["code", "note"]),
                row(3, &["A1", "two\r\nlines, \"quoted\""]),
                row(7, &["B2", "x"]),
                row(8, &["C3", ""]),
                row(9, &["D\n4", ""]),
                row(11, &["E5"]),
            ]
        );
        assert_eq!(rows(b';', "a;b\n\"\"\n"), [row(1, &["a", "b"]), row(2, &[""])]);
        assert_eq!(rows(b',', ""), []);
        assert_eq!(rows(b',', "\r\n\n"), []);
    }

    #[test]
    fn every_cut_gives_the_same_records() {
        let whole = read_all(b',', &[TRICKY.as_bytes()]);
        let bytes = TRICKY.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(read_all(b',', &pieces), whole, "cut at {first} and {second}");
            }
        }
    }

    /// Reads with a new reader behind every record.
    fn read_resuming(text: &[u8]) -> Vec<Row> {
        let (mut place, mut rows) = (Place::START, Vec::new());
        loop {
            let mut records = Records::new(b',', place);
            let from = usize::try_from(place.offset).unwrap();
            // One byte beyond the record at a time, so that a CR is met without what follows it.
            let mut end = from;
            let row = loop {
                end = (end + 1).min(text.len());
                let begin = usize::try_from(records.read_to()).unwrap();
                match records.next(&mut &text[begin..end], end == text.len()) {
                    Next::Record(record) => {
                        break Some((
                            record.line,
                            record
                                .fields()
                                .map(|field| String::from_utf8_lossy(field).into_owned())
                                .collect(),
                        ));
                    }
                    Next::NeedInput => {}
                    _ => break None,
                }
            };
            let Some(row) = row else { return rows };
            rows.push(row);
            place = records.place();
        }
    }

    #[test]
    fn a_quote_that_never_closes_and_a_giant_record_are_told_apart() {
        assert_eq!(
            read_all(b',', &[b"a\n\"b\nc\n"]),
            (vec![row(1, &["a"])], "Unclosed(2)".into())
        );
        let mut text = b"a\n\n\"".to_vec();
        text.resize(MAX_RECORD + 10, b'x');
        let cut = text.len() / 2;
        assert_eq!(read_all(b',', &[&text[..cut], &text[cut..]]).1, "TooLong(3)");
    }

    #[test]
    fn too_many_columns_are_noticed_and_the_next_record_is_whole() {
        let text = format!("{}\nnext,b\n", "x,".repeat(5_000));
        let mut records = Records::new(b',', Place::START);
        let mut piece = text.as_bytes();
        match records.next(&mut piece, true) {
            Next::Record(record) => assert!(record.too_wide && record.len() <= MAX_COLUMNS),
            other => panic!("{other:?}"),
        }
        match records.next(&mut piece, true) {
            Next::Record(record) => {
                assert!(!record.too_wide && record.field(0) == b"next" && record.len() == 2)
            }
            other => panic!("{other:?}"),
        };
    }

    proptest! {
        #[test]
        fn going_on_behind_any_record_gives_the_same(text in r#"[ab,"\r\n]{0,40}"#) {
            let whole = rows(b',', &text);
            prop_assert_eq!(read_resuming(text.as_bytes()), whole);
        }

        #[test]
        fn any_cut_gives_the_same(text in r#"[ab,"\r\n]{0,60}"#, cut in 0usize..60) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(read_all(b',', &[&bytes[..cut], &bytes[cut..]]), read_all(b',', &[bytes]));
        }
    }
}
