//! Codes into a book: a CSV file as a stream, or a short list as JSON; both become an import job.

use bytes::Bytes;
use coupon_core::{
    book,
    import::{
        Mode, Settings,
        create::{self, NewImport},
        dialect,
        report::ErrorsCsv,
        upload::{self, Target},
    },
};
use futures_util::stream;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Header, Path, Query},
};
use uuid::Uuid;

use super::{
    Tag,
    job_reply::{self, JobReply},
};
use crate::{
    Body, Problem, RequestId,
    app::App,
    auth::Auth,
    csv::{CsvBody, CsvReport, receive},
    once::IdempotencyKey,
};

/// What is done about bad lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ImportMode {
    /// Good lines are imported, bad ones are listed.
    SkipInvalid,
    /// One bad line and nothing is imported.
    AllOrNothing,
    /// Nothing is imported; the report says what would be.
    ValidateOnly,
}

impl From<ImportMode> for Mode {
    fn from(mode: ImportMode) -> Self {
        match mode {
            ImportMode::SkipInvalid => Self::SkipInvalid,
            ImportMode::AllOrNothing => Self::AllOrNothing,
            ImportMode::ValidateOnly => Self::ValidateOnly,
        }
    }
}

/// A short list of codes.
#[derive(Debug, Object)]
pub struct CodeList {
    /// 1 to 10,000 codes.
    #[oai(validator(min_items = 1, max_items = 10000))]
    codes: Vec<String>,
    /// What is done about bad ones; skip_invalid by default.
    mode: Option<ImportMode>,
}

/// How a file is to be read; what is absent is found out.
struct Given {
    book_id: Uuid,
    mode: Option<ImportMode>,
    delimiter: Option<String>,
    column: Option<String>,
    has_header: Option<bool>,
    encoding: Option<String>,
    metadata_columns: Option<bool>,
}

impl Given {
    fn settings(&self) -> Result<Settings, Problem> {
        let delimiter = self
            .delimiter
            .as_deref()
            .map(dialect::parse_delimiter)
            .transpose()?;
        Ok(Settings {
            mode: self.mode.map(Mode::from).unwrap_or_default(),
            delimiter,
            column: self.column.clone(),
            has_header: self.has_header,
            encoding: self.encoding.clone(),
            metadata_columns: self.metadata_columns.unwrap_or(false),
        })
    }
}

/// The endpoints of codes.
pub struct Codes {
    /// What handlers share.
    pub app: App,
}

impl Codes {
    async fn import(
        &self,
        auth: &Auth,
        id: &RequestId,
        key: IdempotencyKey,
        prefer: Option<&str>,
        given: Given,
        body: CsvBody,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        self.app.depth().admit()?;
        let settings = given.settings()?;
        let mut connection = self.app.connection().await?;
        book::find(&mut connection, given.book_id).await?;
        drop(connection);
        let target = Target::Book(given.book_id);
        let upload = receive(&self.app, auth, target, given.encoding.as_deref(), body).await?;
        let new = NewImport {
            book_id: given.book_id,
            upload_id: upload.id,
            settings,
            actor: auth.actor(),
            request_id: Some(id.as_str()),
        };
        let hash = Some(&upload.sha256);
        let accepted = job_reply::accepted(&self.app, auth, key, hash, prefer, async |tx| {
            create::create(tx, &new).await
        })
        .await;
        if !matches!(&accepted, Ok(reply) if !reply.is_replayed()) {
            // Nobody will read it; if this fails the sweep takes it.
            let _ = upload::discard(self.app.db(), upload.id).await;
        }
        accepted
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Books")]
impl Codes {
    /// Import a CSV file of codes: a job. The file is read as a stream and kept until the job is over.
    #[oai(path = "/books/:id/codes/import", method = "post")]
    #[expect(clippy::too_many_arguments, reason = "each is a declared parameter")]
    async fn import_file(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        mode: Query<Option<ImportMode>>,
        delimiter: Query<Option<String>>,
        column: Query<Option<String>>,
        has_header: Query<Option<bool>>,
        encoding: Query<Option<String>>,
        metadata_columns: Query<Option<bool>>,
        body: CsvBody,
    ) -> Result<JobReply, Problem> {
        let given = Given {
            book_id: id.0,
            mode: mode.0,
            delimiter: delimiter.0,
            column: column.0,
            has_header: has_header.0,
            encoding: encoding.0,
            metadata_columns: metadata_columns.0,
        };
        self.import(&auth, &request_id, key, prefer.0.as_deref(), given, body)
            .await
    }

    /// Import a CSV file of codes (another name of POST /v1/books/{id}/codes/import).
    #[oai(path = "/coupons/codes", method = "post")]
    #[expect(clippy::too_many_arguments, reason = "each is a declared parameter")]
    async fn import_file_as_coupons(
        &self,
        auth: Auth,
        request_id: RequestId,
        book_id: Query<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        mode: Query<Option<ImportMode>>,
        delimiter: Query<Option<String>>,
        column: Query<Option<String>>,
        has_header: Query<Option<bool>>,
        encoding: Query<Option<String>>,
        metadata_columns: Query<Option<bool>>,
        body: CsvBody,
    ) -> Result<JobReply, Problem> {
        let given = Given {
            book_id: book_id.0,
            mode: mode.0,
            delimiter: delimiter.0,
            column: column.0,
            has_header: has_header.0,
            encoding: encoding.0,
            metadata_columns: metadata_columns.0,
        };
        self.import(&auth, &request_id, key, prefer.0.as_deref(), given, body)
            .await
    }

    /// Add a short list of codes: a job. While another job adds codes to the book, this one waits.
    #[oai(path = "/books/:id/codes", method = "post")]
    async fn add(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<CodeList>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        self.app.depth().admit()?;
        let mode = body.mode.map(Mode::from).unwrap_or_default();
        let (actor, id_text) = (auth.actor(), Some(request_id.as_str()));
        let (hash, prefer) = (Some(body.hash()), prefer.0.as_deref());
        job_reply::accepted(&self.app, &auth, key, hash, prefer, async |tx| {
            create::create_from_codes(tx, id.0, &body.codes, mode, actor, id_text).await
        })
        .await
    }

    /// What a job could not do, as CSV; of an import with the original columns: mend it and send it again.
    #[oai(path = "/jobs/:id/errors.csv", method = "get")]
    async fn errors_csv(&self, auth: Auth, id: Path<Uuid>) -> Result<CsvReport, Problem> {
        let mut connection = self.app.connection().await?;
        let report = ErrorsCsv::begin(&mut connection, &auth, id.0).await?;
        drop(connection);
        let app = self.app.clone();
        let pages = stream::try_unfold(report, move |mut report| {
            let app = app.clone();
            async move {
                // A connection per page: a slow reader holds none.
                let mut connection = app.connection().await.map_err(std::io::Error::other)?;
                let page = report
                    .next(&mut connection)
                    .await
                    .map_err(std::io::Error::other)?;
                Ok(page.map(|page| (Bytes::from(page), report)))
            }
        });
        Ok(CsvReport::new(format!("errors-{}.csv", id.0), pages))
    }
}
