//! Every refusal on the wire: `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! Invariant: [`status`] is the only place where a [`Kind`] becomes an HTTP status, and no body says more about a
//! fault of this service than that there was one. A new refusal needs nothing here; a new kind needs its line below.

use std::{borrow::Cow, fmt, time::Duration};

use coupon_core::{
    Code, Error, Refusal,
    error::{FieldError, Kind, StoreError, Unfit},
};
use poem::{
    Response,
    error::ResponseError,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use poem_openapi::{
    ApiResponse,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use serde_json::{Value, json};

use crate::{rate_limit, request_id::RequestId};

/// The content type of every refusal.
pub const CONTENT_TYPE_PROBLEM: &str = "application/problem+json";

/// When asking again may help, if the refusal does not know better.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The one table from the kind of a refusal to its HTTP status.
pub fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Gone => StatusCode::GONE,
        Kind::Stale => StatusCode::PRECONDITION_FAILED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Locked => StatusCode::LOCKED,
        Kind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What the document says of each status that an operation may refuse with.
const DECLARED: &[(u16, &str)] = &[
    (400, "The body is not JSON."),
    (401, "No usable token or key."),
    (403, "The role or scopes do not reach."),
    (404, "Absent, or somebody else's."),
    (409, "The state of things does not allow it; `code` says why."),
    (410, "Over for good."),
    (412, "`If-Match` names an older version."),
    (413, "The body is too large."),
    (415, "This content type is not understood here."),
    (422, "Understood, but not valid; `errors` lists every fault."),
    (423, "A live lock is in the way."),
    (429, "Too many requests."),
    (500, "A fault of this service."),
    (503, "Not now; try again after `Retry-After`."),
];

/// A refusal on its way to the client; the edge adds the request id and writes the body.
#[derive(Debug, Clone)]
pub struct Problem {
    refusal: Refusal,
    errors: Vec<FieldError>,
    needed_length: Option<usize>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A refusal with its sentence.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Refusal::new(code, detail).into()
    }

    /// 422 `validation_failed` with every fault.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.len() {
            1 => "One part of the request is not valid; see errors.".into(),
            count => format!("{count} parts of the request are not valid; see errors.").into(),
        };
        Self {
            refusal: Refusal {
                detail,
                ..Refusal::new(Code::ValidationFailed, "")
            },
            errors,
            needed_length: None,
            headers: Vec::new(),
        }
    }

    /// 422 `validation_failed` with one fault at `pointer`.
    pub fn field(pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError {
            pointer: pointer.into(),
            code,
            detail: detail.into(),
        }])
    }

    /// 404, the same for what is absent and for what is somebody else's.
    pub fn not_found() -> Self {
        Refusal::not_found().into()
    }

    /// 500 without any particulars; whoever calls this has logged them.
    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Something went wrong on our side; the request id finds it in the log.",
        )
    }

    /// The same with one more header, such as `Allow` or `RateLimit`.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.refusal.code
    }

    /// Every fault of the request, if it was refused for its form.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The body, as clients see it.
    pub fn body(&self, request_id: Option<&RequestId>) -> Value {
        let code = self.refusal.code;
        let mut body = json!({
            "type": format!("urn:couponbook:problem:{code}"),
            "title": title(code),
            "status": status(code.kind()).as_u16(),
            "code": code.as_str(),
            "detail": self.refusal.detail,
            "request_id": request_id.map_or("", RequestId::as_str),
        });
        if code == Code::ValidationFailed || !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        if let Some(length) = self.needed_length {
            body["needed_length"] = json!(length);
        }
        body
    }

    /// The whole answer.
    pub fn response(&self, request_id: Option<&RequestId>) -> Response {
        let code = self.refusal.code;
        let mut response = Response::builder()
            .status(status(code.kind()))
            .header(CONTENT_TYPE, CONTENT_TYPE_PROBLEM)
            .body(self.body(request_id).to_string());
        let headers = response.headers_mut();
        headers.extend(self.headers.iter().cloned());
        if code.kind() == Kind::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(limit) = &self.refusal.limit {
            rate_limit::tell(headers, limit);
        }
        if let Some(after) = self.refusal.retry_after.or_else(|| default_retry_after(code)) {
            // Rounded up: whoever comes back too early is refused again.
            headers.insert(
                RETRY_AFTER,
                HeaderValue::from(after.as_millis().div_ceil(1_000) as u64),
            );
        }
        response
    }
}

fn default_retry_after(code: Code) -> Option<Duration> {
    let wanted = matches!(code.kind(), Kind::Locked | Kind::RateLimited | Kind::Unavailable)
        || code == Code::IdempotencyInProgress;
    wanted.then_some(DEFAULT_RETRY_AFTER)
}

/// `not_found` → `Not found`: RFC 9457 wants one title per type.
fn title(code: Code) -> String {
    let mut title = code.as_str().replace('_', " ");
    title[..1].make_ascii_uppercase();
    title
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            errors: Vec::new(),
            needed_length: None,
            headers: Vec::new(),
        }
    }
}

impl From<Unfit> for Problem {
    fn from(unfit: Unfit) -> Self {
        Self {
            errors: vec![unfit.fault.clone()],
            needed_length: unfit.needed_length,
            ..Refusal::new(unfit.code, unfit.fault.detail).into()
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.into(),
            Error::Invalid(errors) => Self::invalid(errors),
            Error::Unfit(unfit) => unfit.into(),
            Error::Store(error) if error.is_retryable() => {
                tracing::warn!(%error, "the database asks to try again");
                Self::new(
                    Code::Unavailable,
                    "The database cannot answer just now; try again.",
                )
            }
            Error::Store(error) => {
                tracing::error!(%error, "the database failed");
                Self::internal()
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status(&self) -> StatusCode {
        status(self.refusal.code.kind())
    }

    fn as_response(&self) -> Response {
        self.response(None)
    }
}

impl ApiResponse for Problem {
    fn meta() -> MetaResponses {
        let response = |&(status, description): &(u16, &'static str)| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: CONTENT_TYPE_PROBLEM,
                schema: MetaSchemaRef::Reference("Problem".to_owned()),
            }],
            headers: vec![],
        };
        MetaResponses {
            responses: DECLARED.iter().map(response).collect(),
        }
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>("Problem".to_owned(), |_| MetaSchema {
            description: Some("Why a request was refused (RFC 9457)."),
            required: vec!["type", "title", "status", "code", "detail", "request_id"],
            properties: vec![
                (
                    "type",
                    string("Names the sort of problem; one URI per code.", None),
                ),
                ("title", string("The same for people.", None)),
                ("status", inline(MetaSchema::new_with_format("integer", "int32"))),
                ("code", codes()),
                (
                    "detail",
                    string("What went wrong this time, and what to do.", None),
                ),
                ("request_id", string("Finds the request in the log.", None)),
                ("errors", faults()),
                (
                    "needed_length",
                    inline(MetaSchema {
                        description: Some(
                            "With `pattern_space_too_small`: how many characters codes would need.",
                        ),
                        ..MetaSchema::new_with_format("integer", "int32")
                    }),
                ),
            ],
            ..MetaSchema::new("object")
        });
    }
}

fn codes() -> MetaSchemaRef {
    inline(MetaSchema {
        description: Some("Stable; write programs against this one."),
        enum_items: Code::ALL.iter().map(|code| Value::from(code.as_str())).collect(),
        ..MetaSchema::new("string")
    })
}

fn faults() -> MetaSchemaRef {
    let fault = MetaSchema {
        required: vec!["pointer", "code", "detail"],
        properties: vec![
            (
                "pointer",
                string(
                    "A JSON pointer into the body, `?name` or `header:Name`.",
                    Some("/items/3/count"),
                ),
            ),
            ("code", string("A stable word.", Some("out_of_range"))),
            ("detail", string("The same for people.", None)),
        ],
        ..MetaSchema::new("object")
    };
    inline(MetaSchema {
        description: Some(
            "Every fault of the request, with `validation_failed` and what is said of patterns.",
        ),
        items: Some(Box::new(inline(fault))),
        ..MetaSchema::new("array")
    })
}

fn string(description: &'static str, example: Option<&str>) -> MetaSchemaRef {
    let example = example.map(Value::from);
    inline(MetaSchema {
        description: Some(description),
        example,
        ..MetaSchema::new("string")
    })
}

fn inline(schema: MetaSchema) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(schema))
}

#[cfg(test)]
mod tests {
    use coupon_core::error::StoreError;

    use super::*;

    #[test]
    fn every_code_has_a_declared_status_except_405_which_no_operation_has() {
        for code in Code::ALL {
            let status = status(code.kind()).as_u16();
            let declared = DECLARED.iter().any(|(declared, _)| *declared == status);
            assert!(declared || status == 405, "{code} answers {status}");
        }
    }

    #[test]
    fn what_asks_to_come_back_says_when_rounded_up() {
        let header = |problem: Problem| problem.response(None).header(RETRY_AFTER).map(str::to_owned);
        for code in [
            Code::CouponLocked,
            Code::RateLimited,
            Code::Unavailable,
            Code::IdempotencyInProgress,
        ] {
            assert_eq!(header(Problem::new(code, "")).as_deref(), Some("1"), "{code}");
        }
        assert_eq!(header(Problem::new(Code::BookExhausted, "")), None);
        let late = Refusal::new(Code::CouponLocked, "").retry_after(Duration::from_millis(2_001));
        assert_eq!(header(late.into()).as_deref(), Some("3"));
    }

    #[test]
    fn the_database_is_never_quoted() {
        let fault = Error::Store(StoreError::Fault(sqlx::Error::ColumnNotFound(
            "column".to_owned(),
        )));
        let body = Problem::from(fault).body(None).to_string();
        assert!(
            body.contains("\"internal\"") && !body.contains("column"),
            "{body}"
        );
    }

    #[test]
    fn invalid_credentials_challenge_too() {
        let response = Problem::new(Code::InvalidCredentials, "").response(None);
        assert_eq!(response.header(WWW_AUTHENTICATE), Some("Bearer"));
    }
}
