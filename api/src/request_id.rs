//! The request id: taken from `X-Request-Id` or made, in every answer, log line and problem body.
//!
//! Invariant: an id is 1 to [`MAX_LENGTH`] printable ASCII characters without spaces, so that it can stand in a header,
//! a log line and a database column as it is. Handlers take `id: RequestId` as an argument.

use std::{fmt, sync::Arc};

use poem::{
    FromRequest, Request, RequestBody, Result,
    http::{HeaderMap, HeaderName, HeaderValue},
};

/// The header, both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters taken from a client.
const MAX_LENGTH: usize = 128;

/// What finds a request in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's id if it has sent exactly one that is fit to be logged, else a new UUIDv7.
    pub fn take_or_make(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all(X_REQUEST_ID).iter();
        match (sent.next().and_then(|value| value.to_str().ok()), sent.next()) {
            (Some(id), None) if is_fit(id) => Self(id.into()),
            _ => Self(coupon_core::id::new().to_string().into()),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as a header.
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("an id is printable ASCII")
    }
}

fn is_fit(id: &str) -> bool {
    (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'a> FromRequest<'a> for RequestId {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> Result<Self> {
        // Absent only where a handler is called without the edge, as in a unit test.
        Ok(request
            .data::<Self>()
            .cloned()
            .unwrap_or_else(|| Self::take_or_make(request.headers())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(values: &[&str]) -> RequestId {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_str(value).unwrap());
        }
        RequestId::take_or_make(&headers)
    }

    #[test]
    fn a_fit_id_is_kept_and_anything_else_replaced() {
        let longest = "x".repeat(MAX_LENGTH);
        for kept in ["abc-1", longest.as_str()] {
            assert_eq!(take(&[kept]).as_str(), kept);
        }
        let too_long = "x".repeat(MAX_LENGTH + 1);
        for replaced in [
            &[][..],
            &[""],
            &["a b"],
            &["a\tb"],
            &["one", "two"],
            &[too_long.as_str()],
        ] {
            let made = take(replaced);
            assert_eq!(
                uuid::Uuid::parse_str(made.as_str()).unwrap().get_version_num(),
                7,
                "{replaced:?}"
            );
        }
    }
}
