//! Rows in the binary format of COPY (PostgreSQL manual, COPY, "Binary Format"): no text to write here and to read there.
//!
//! Invariant: every row has the number of fields that the writer was made for, in the order of the COPY's columns.

use chrono::{DateTime, TimeZone, Utc};
use uuid::Uuid;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What stands behind the last row.
const END: [u8; 2] = (-1i16).to_be_bytes();

/// Rows being written.
pub(crate) struct Rows {
    bytes: Vec<u8>,
    fields: i16,
}

impl Rows {
    /// Rows of so many fields.
    pub(crate) fn new(fields: i16) -> Self {
        Self {
            bytes: HEADER.to_vec(),
            fields,
        }
    }

    /// Begins a row.
    pub(crate) fn row(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&self.fields.to_be_bytes());
        self
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Self {
        let length = i32::try_from(bytes.len()).expect("a field is far smaller than 2 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn null(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&(-1i32).to_be_bytes());
        self
    }

    pub(crate) fn uuid(&mut self, value: Option<Uuid>) -> &mut Self {
        match value {
            Some(value) => self.field(value.as_bytes()),
            None => self.null(),
        }
    }

    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub(crate) fn i32(&mut self, value: i32) -> &mut Self {
        self.field(&value.to_be_bytes())
    }

    pub(crate) fn text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.field(value.as_bytes()),
            None => self.null(),
        }
    }

    /// JSON text, as `jsonb` wants it: a version and the text.
    pub(crate) fn json(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => {
                let length = i32::try_from(value.len() + 1).expect("a field is far smaller than 2 GiB");
                self.bytes.extend_from_slice(&length.to_be_bytes());
                self.bytes.push(1);
                self.bytes.extend_from_slice(value.as_bytes());
                self
            }
            None => self.null(),
        }
    }

    /// Microseconds since the year 2000.
    pub(crate) fn time(&mut self, value: Option<DateTime<Utc>>) -> &mut Self {
        let epoch = Utc.with_ymd_and_hms(2000, 1, 1, 0, 0, 0).single();
        match (value, epoch) {
            (Some(value), Some(epoch)) => {
                let micros = value.timestamp_micros() - epoch.timestamp_micros();
                self.field(&micros.to_be_bytes())
            }
            _ => self.null(),
        }
    }

    /// How much is written.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes what is written so far, to be sent.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// The end, with what is left.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&END);
        self.bytes
    }
}
