//! The report of bad lines as CSV: the columns of the file as they were sent, then line, reason and detail.
//!
//! Invariant: mended in place, the report can be sent again as it is. So it has the file's own header and delimiter,
//! and its cells are exactly those that were sent: they are not changed for the sake of spreadsheets. Its own three
//! columns are recognised and left out of metadata and of a further report. A job that had no file (a batch) has a report
//! of its items.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{dialect::Layout, step::Kept};
use crate::{
    caller::Caller,
    error::{Refusal, Result},
    job::ledger,
};

/// Lines of a page: some hundred kilobytes.
const PAGE: i64 = 1_000;

/// The columns that the report adds.
pub(super) const OWN_COLUMNS: [&str; 3] = ["line", "reason", "detail"];

/// The columns of a report of items.
const ITEM_COLUMNS: [&str; 4] = ["user_id", "item", "reason", "detail"];

/// A report being written, page by page; no transaction need be held in between.
#[derive(Debug)]
pub struct ErrorsCsv {
    job_id: Uuid,
    /// The file's, if there was one.
    layout: Option<Layout>,
    after: Option<i64>,
    over: bool,
}

impl ErrorsCsv {
    /// Begins the report of a job that `caller` may see.
    ///
    /// # Errors
    /// `not_found`, also for a job that has no report; `expired`.
    pub async fn begin(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Self> {
        let job = ledger::find(connection, caller, job_id).await?;
        job.require_kept()?;
        let kept: Option<sqlx::types::Json<Kept>> =
            sqlx::query_scalar("SELECT settings FROM imports WHERE job_id = $1 UNION ALL SELECT settings FROM pool_imports WHERE job_id = $1")
                .bind(job_id)
                .fetch_optional(connection)
                .await?;
        if kept.is_none() && !job.has_errors {
            return Err(Refusal::not_found().into());
        }
        Ok(Self {
            job_id,
            layout: kept.map(|kept| kept.0.layout),
            after: None,
            over: false,
        })
    }

    /// The next bytes of the report; `None` at its end. The first ones are the header.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<Vec<u8>>> {
        if self.over {
            return Ok(None);
        }
        let mut csv = Vec::new();
        let width = self.width();
        if self.after.is_none() {
            match &self.layout {
                Some(layout) => {
                    let names = (0..width).map(|column| layout.name(column));
                    self.write(&mut csv, names.chain(OWN_COLUMNS.map(str::to_owned)));
                }
                None => self.write(&mut csv, ITEM_COLUMNS.map(str::to_owned).into_iter()),
            }
        }
        let rows: Vec<(i64, String, String, serde_json::Value)> = sqlx::query_as(
            "SELECT seq, coalesce(entry->>'reason', ''), coalesce(entry->>'detail', ''),
                    coalesce(original, jsonb_build_array(coalesce(entry->>'user_id', '')))
             FROM job_errors WHERE job_id = $1 AND seq > coalesce($2, -1) ORDER BY seq LIMIT $3",
        )
        .bind(self.job_id)
        .bind(self.after)
        .bind(PAGE)
        .fetch_all(connection)
        .await?;
        self.over = rows.len() < usize::try_from(PAGE).unwrap_or(0);
        self.after = Some(rows.last().map_or(0, |(line, ..)| *line));
        for (line, reason, detail, original) in rows {
            let fields = (0..width).map(|column| {
                let field = original.get(column).and_then(serde_json::Value::as_str);
                field.unwrap_or_default().to_owned()
            });
            self.write(&mut csv, fields.chain([line.to_string(), reason, detail]));
        }
        Ok(Some(csv))
    }

    /// The columns of the file, less those of an earlier report; of items one, the user.
    fn width(&self) -> usize {
        self.layout.as_ref().map_or(1, |layout| {
            let own = layout.header.as_deref().is_some_and(ends_with_own_columns);
            layout.width - if own { OWN_COLUMNS.len() } else { 0 }
        })
    }

    fn write(&self, csv: &mut Vec<u8>, fields: impl Iterator<Item = String>) {
        let separator = self.layout.as_ref().map_or(',', |layout| layout.delimiter);
        let mut delimiter = [0; 4];
        let delimiter = separator.encode_utf8(&mut delimiter);
        for (n, field) in fields.enumerate() {
            if n > 0 {
                csv.extend_from_slice(delimiter.as_bytes());
            }
            let plain = !field.contains(['"', '\r', '\n', ' ', separator]) && (n > 0 || !field.is_empty());
            if plain {
                csv.extend_from_slice(field.as_bytes());
            } else {
                csv.push(b'"');
                csv.extend_from_slice(field.replace('"', "\"\"").as_bytes());
                csv.push(b'"');
            }
        }
        csv.extend_from_slice(b"\r\n");
    }
}

/// Whether a header is that of a report.
pub(super) fn ends_with_own_columns(header: &[String]) -> bool {
    header.len() > OWN_COLUMNS.len()
        && header[header.len() - OWN_COLUMNS.len()..]
            .iter()
            .zip(OWN_COLUMNS)
            .all(|(name, own)| name.trim() == own)
}
