//! CSV bodies: requests that are read as a stream, answers that are written as one.

use bytes::Bytes;
use coupon_core::{
    Code,
    caller::Caller,
    import::upload::{self, Limits, Receiver, Target, Upload},
};
use futures_util::{Stream, StreamExt};
use poem::{
    Body, IntoResponse, Request, RequestBody, Response, Result,
    http::header::{CONTENT_DISPOSITION, CONTENT_TYPE},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions,
    registry::{
        MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
    },
    types::ParseFromJSON,
};

use crate::{Problem, app::App};

/// The content type that is declared.
const TEXT_CSV: &str = "text/csv";

/// The others that are taken: packed files, and what tools send for a file that they do not know.
const TAKEN: [&str; 8] = [
    TEXT_CSV,
    "text/plain",
    "text/tab-separated-values",
    "application/csv",
    "application/gzip",
    "application/zstd",
    "application/octet-stream",
    "application/vnd.ms-excel",
];

fn schema() -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "binary")))
}

/// A CSV body, unread; plain, gzip or zstd.
#[derive(Debug)]
pub struct CsvBody(pub Body);

impl<'a> ApiExtractor<'a> for CsvBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(_registry: &mut Registry) {}

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: Some("RFC 4180, with a header or one column; plain, gzip or zstd."),
            content: vec![MetaMediaType {
                content_type: TEXT_CSV,
                schema: schema(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let essence = essence(request);
        if !TAKEN.iter().any(|taken| essence.eq_ignore_ascii_case(taken)) {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "This takes a CSV file: send it with Content-Type: text/csv.",
            )
            .into());
        }
        Ok(Self(body.take().unwrap_or_default()))
    }
}

/// The content type of a request without its parameters.
fn essence(request: &Request) -> &str {
    let content_type = request.content_type().unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Receives a file for an import and keeps it; what does not arrive completely is kept by nobody.
///
/// # Errors
/// 422 for a damaged or incomplete file or an unknown encoding, `payload_too_large`.
pub async fn receive(
    app: &App,
    caller: &Caller,
    target: Target,
    encoding: Option<&str>,
    body: CsvBody,
) -> Result<Upload, Problem> {
    let limits = Limits {
        text_bytes: app.max_upload_bytes(),
        ..Limits::default()
    };
    let mut receiver = Receiver::begin(app.db(), target, caller.actor(), encoding, limits).await?;
    let mut chunks = body.0.into_bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let fed = match chunk {
            Ok(chunk) => receiver.feed(&chunk).await.map_err(Problem::from),
            Err(_) => Err(Problem::field(
                "",
                "incomplete",
                "The file did not arrive completely; nothing was imported.",
            )),
        };
        if let Err(problem) = fed {
            let _ = receiver.abort().await;
            return Err(problem);
        }
    }
    let id = receiver.id();
    let finished = receiver.finish().await;
    if finished.is_err() {
        let _ = upload::discard(app.db(), id).await;
    }
    Ok(finished?)
}

/// A body that is JSON or CSV, by its content type.
pub enum JsonOrCsv<T> {
    /// Checked as [`crate::Body`] does.
    Json(crate::Body<T>),
    /// Unread.
    Csv(Body),
}

impl<'a, T: ParseFromJSON + 'static> ApiExtractor<'a> for JsonOrCsv<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let mut meta = crate::Body::<T>::request_meta()?;
        meta.content.push(MetaMediaType {
            content_type: TEXT_CSV,
            schema: schema(),
        });
        Some(meta)
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let essence = essence(request);
        if essence.eq_ignore_ascii_case(TEXT_CSV) {
            return Ok(Self::Csv(body.take().unwrap_or_default()));
        }
        Ok(Self::Json(
            crate::Body::from_request(request, body, options).await?,
        ))
    }
}

/// A CSV file as an answer, written as it is made.
pub struct CsvReport {
    name: String,
    body: Body,
}

impl CsvReport {
    /// With the name under which a browser keeps it.
    pub fn new(name: String, pages: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Self {
        Self {
            name,
            body: Body::from_bytes_stream(pages.boxed()),
        }
    }
}

impl IntoResponse for CsvReport {
    fn into_response(self) -> Response {
        Response::builder()
            .header(CONTENT_TYPE, "text/csv; charset=utf-8; header=present")
            .header(
                CONTENT_DISPOSITION,
                format!("attachment; filename=\"{}\"", self.name),
            )
            .body(self.body)
    }
}

impl ApiResponse for CsvReport {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The file.",
                status: Some(200),
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: TEXT_CSV,
                    schema: schema(),
                }],
                headers: Vec::new(),
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}
