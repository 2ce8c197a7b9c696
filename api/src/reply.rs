//! Answers of operations that change something: JSON bytes with a declared type, so that a stored answer is given
//! again exactly as it was.

use std::marker::PhantomData;

use poem::{
    IntoResponse, Response,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, ETAG, LOCATION},
    },
};
use poem_openapi::{
    ApiResponse,
    payload::{Json, Payload},
    registry::{MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::ToJSON,
};

/// Says that an answer was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// An answer with status `STATUS` and a body of type `T`.
#[derive(Debug)]
pub struct Reply<T, const STATUS: u16 = 200> {
    body: Vec<u8>,
    location: Option<String>,
    etag: Option<String>,
    replayed: bool,
    shape: PhantomData<fn() -> T>,
}

impl<T: ToJSON, const STATUS: u16> Reply<T, STATUS> {
    /// An answer just made.
    pub fn new(value: &T) -> Self {
        Self::from_bytes(value.to_json_string().into_bytes())
    }

    /// An answer from its bytes.
    pub fn from_bytes(body: Vec<u8>) -> Self {
        Self {
            body,
            location: None,
            etag: None,
            replayed: false,
            shape: PhantomData,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// With a `Location`.
    pub fn at(mut self, location: Option<String>) -> Self {
        self.location = location;
        self
    }

    /// With an `ETag`.
    pub fn tagged(mut self, etag: String) -> Self {
        self.etag = Some(etag);
        self
    }

    /// Given before.
    pub fn replayed(mut self) -> Self {
        self.replayed = true;
        self
    }
}

impl<T, const STATUS: u16> IntoResponse for Reply<T, STATUS> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).expect("statuses are written by hand");
        let mut response = if self.body.is_empty() {
            Response::builder().status(status).finish()
        } else {
            Response::builder()
                .status(status)
                .header(CONTENT_TYPE, "application/json")
                .body(self.body)
        };
        let headers = response.headers_mut();
        for (name, value) in [(LOCATION, self.location), (ETAG, self.etag)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl<T: ToJSON, const STATUS: u16> ApiResponse for Reply<T, STATUS> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType {
            content_type: Json::<T>::CONTENT_TYPE,
            schema: T::schema_ref(),
        }];
        MetaResponses {
            responses: vec![MetaResponse {
                description: "",
                status: Some(STATUS),
                status_range: None,
                content: if STATUS == 204 { Vec::new() } else { content },
                headers: Vec::new(),
            }],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}
