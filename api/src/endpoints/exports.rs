//! Exports: a book's coupons or redemptions as a file, made by a job and fetched when it has ended.

use bytes::Bytes;
use coupon_core::{
    coupon,
    export::{
        self,
        create::{self, NewExport},
        file::{Cursor, File},
    },
};
use futures_util::{StreamExt, stream};
use poem::{
    IntoResponse, Response,
    http::{
        StatusCode,
        header::{
            ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
            CONTENT_TYPE, ETAG, VARY,
        },
    },
};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    param::{Header, Path, Query},
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use uuid::Uuid;

use super::{
    Tag,
    coupons::State,
    job_reply::{self, JobReply},
    origin,
};
use crate::{Body, Problem, RequestId, app::App, auth::Auth, once::IdempotencyKey};

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ExportKind {
    /// The coupons of a book, in the order of their codes.
    Coupons,
    /// Its redemptions and rollbacks, oldest first.
    Redemptions,
}

/// What to export.
#[derive(Debug, Object)]
pub struct ExportRequest {
    kind: ExportKind,
    book_id: Uuid,
    /// Only coupons in this state.
    #[oai(skip_serializing_if_is_none)]
    state: Option<State>,
}

impl From<&ExportRequest> for NewExport {
    fn from(request: &ExportRequest) -> Self {
        Self {
            book_id: request.book_id,
            kind: match request.kind {
                ExportKind::Coupons => export::Kind::Coupons,
                ExportKind::Redemptions => export::Kind::Redemptions,
            },
            state: request.state.map(coupon::State::from),
        }
    }
}

impl From<&NewExport> for ExportRequest {
    fn from(new: &NewExport) -> Self {
        Self {
            book_id: new.book_id,
            kind: match new.kind {
                export::Kind::Coupons => ExportKind::Coupons,
                export::Kind::Redemptions => ExportKind::Redemptions,
            },
            state: new.state.map(State::from),
        }
    }
}

/// How a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum FileFormat {
    /// As text; packed on the way for whoever accepts gzip.
    Csv,
    /// As a packed file, to be kept as it is.
    Gzip,
}

/// The endpoints of exports.
pub struct Exports {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Books")]
impl Exports {
    /// Export a book's coupons or redemptions as CSV: a job. Its id is the export's.
    #[oai(path = "/exports", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        request_id: RequestId,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<ExportRequest>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        self.app.depth().admit()?;
        let new = NewExport::from(&body.value);
        let (hash, prefer) = (Some(body.hash()), prefer.0.as_deref());
        job_reply::accepted(&self.app, &auth, key, hash, prefer, async |tx| {
            create::create(tx, &new, origin(&auth, &request_id)).await
        })
        .await
    }

    /// The file of an export that has succeeded. With `Accept-Encoding: gzip` it is packed on the way; a `Range` of
    /// bytes is served from the text, so a download that was cut can go on.
    #[oai(path = "/exports/:id/file", method = "get")]
    #[expect(clippy::too_many_arguments, reason = "each is a declared parameter")]
    async fn file(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        format: Query<Option<FileFormat>>,
        #[oai(name = "Accept-Encoding")] accept_encoding: Header<Option<String>>,
        #[oai(name = "Range")] range: Header<Option<String>>,
        #[oai(name = "If-Range")] if_range: Header<Option<String>>,
    ) -> Result<ExportFile, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        let file = File::find(&mut connection, &auth, id.0).await?;
        let tag = format!("\"{}\"", id.0);
        let range = range
            .0
            .filter(|_| if_range.0.is_none_or(|known| known == tag))
            .and_then(|range| bytes_range(&range, file.bytes));
        let form = match (format.0, range) {
            (Some(FileFormat::Gzip), _) => Form::Packed,
            (_, Some((from, to))) => Form::Part(from, to),
            (_, None) if accepts_gzip(accept_encoding.0.as_deref()) => Form::Encoded,
            _ => Form::Text,
        };
        file.record(&mut connection, origin(&auth, &request_id)).await?;
        drop(connection);
        Ok(ExportFile {
            name: format!("{}-{}.csv", file.kind.as_str(), id.0),
            tag,
            form,
            body: self.body(file.clone(), form),
            file,
        })
    }
}

impl Exports {
    fn body(&self, file: File, form: Form) -> poem::Body {
        let cursor = match form {
            Form::Text => Cursor::Text(0, file.bytes),
            Form::Part(from, to) => Cursor::Text(from, to),
            Form::Encoded | Form::Packed => Cursor::Packed(0),
        };
        let app = self.app.clone();
        let pieces = stream::try_unfold((file, cursor), move |(file, cursor)| {
            let app = app.clone();
            async move {
                // A connection per piece: a slow reader holds none.
                let mut connection = app.connection().await.map_err(std::io::Error::other)?;
                let piece = file.next(&mut connection, cursor).await;
                let piece = piece.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(piece.map(|(bytes, next)| (Bytes::from(bytes), (file, next))))
            }
        });
        poem::Body::from_bytes_stream(pieces.boxed())
    }
}

/// In which form a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The whole text.
    Text,
    /// The text from one byte up to another, which is not included.
    Part(i64, i64),
    /// The whole text, packed on the way.
    Encoded,
    /// The packed file.
    Packed,
}

/// Whether gzip is among what the client takes (RFC 9110, 12.5.3), and not with weight nothing.
fn accepts_gzip(accepted: Option<&str>) -> bool {
    accepted.unwrap_or_default().split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight
            .trim()
            .strip_prefix("q=")
            .is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0));
        matches!(name.trim(), "gzip" | "x-gzip" | "*") && !refused
    })
}

/// One range of bytes (RFC 9110, 14.1.2) of a file of that length: the first and the one behind the last. What cannot
/// be read or served is ignored, as the standard allows, and the whole file is the answer.
fn bytes_range(range: &str, length: i64) -> Option<(i64, i64)> {
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<i64>().ok())
    };
    let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (first.trim(), last.trim()) {
        ("", "") => return None,
        ("", suffix) => (length.saturating_sub(number(suffix)??).max(0), length),
        (first, "") => (number(first)??, length),
        (first, last) => (number(first)??, number(last)??.saturating_add(1).min(length)),
    };
    (from < to).then_some((from, to))
}

/// The file, whole or in part.
pub struct ExportFile {
    name: String,
    tag: String,
    form: Form,
    file: File,
    body: poem::Body,
}

impl IntoResponse for ExportFile {
    fn into_response(self) -> Response {
        let builder = Response::builder().header(VARY, "Accept-Encoding");
        let (name, content_type) = match self.form {
            Form::Packed => (format!("{}.gz", self.name), "application/gzip"),
            _ => (self.name, "text/csv; charset=utf-8; header=present"),
        };
        let builder = match self.form {
            Form::Text => builder
                .header(ACCEPT_RANGES, "bytes")
                .header(ETAG, self.tag)
                .header(CONTENT_LENGTH, self.file.bytes),
            Form::Part(from, to) => builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header(ETAG, self.tag)
                .header(
                    CONTENT_RANGE,
                    format!("bytes {from}-{}/{}", to - 1, self.file.bytes),
                )
                .header(CONTENT_LENGTH, to - from),
            Form::Encoded => builder
                .header(CONTENT_ENCODING, "gzip")
                .header(CONTENT_LENGTH, self.file.packed),
            Form::Packed => builder.header(CONTENT_LENGTH, self.file.packed),
        };
        builder
            .header(CONTENT_TYPE, content_type)
            .header(CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\""))
            .body(self.body)
    }
}

impl ApiResponse for ExportFile {
    fn meta() -> MetaResponses {
        let schema = || MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "binary")));
        let content = |content_type| MetaMediaType {
            content_type,
            schema: schema(),
        };
        let answer = |status, description, content| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content,
            headers: Vec::new(),
        };
        MetaResponses {
            responses: vec![
                answer(
                    200,
                    "The file.",
                    vec![content("text/csv"), content("application/gzip")],
                ),
                answer(206, "The bytes that were asked for.", vec![content("text/csv")]),
            ],
        }
    }

    fn register(_registry: &mut Registry) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_writes_them() {
        let of_ten = |range| bytes_range(range, 10);
        assert_eq!(of_ten("bytes=0-"), Some((0, 10)));
        assert_eq!(of_ten("bytes=3-5"), Some((3, 6)));
        assert_eq!(of_ten("bytes=3-99"), Some((3, 10)));
        assert_eq!(of_ten("bytes=-4"), Some((6, 10)));
        assert_eq!(of_ten("bytes=-99"), Some((0, 10)));
        let ignored = [
            "bytes=10-",
            "bytes=5-3",
            "bytes=-0",
            "bytes=-",
            "bytes=a-",
            "bytes=+1-",
            "items=0-",
            "bytes=0-1,3-4",
            "",
        ];
        for range in ignored {
            assert_eq!(of_ten(range), None, "{range}");
        }
    }

    #[test]
    fn gzip_is_sent_to_those_who_accept_it() {
        for yes in ["gzip", "deflate, gzip;q=0.5", "*", "br, x-gzip"] {
            assert!(accepts_gzip(Some(yes)), "{yes}");
        }
        for no in [None, Some(""), Some("br"), Some("gzip;q=0"), Some("identity")] {
            assert!(!accepts_gzip(no), "{no:?}");
        }
    }
}
