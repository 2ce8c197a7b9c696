//! The edge: what every request passes on its way in and every answer on its way out.
//!
//! Invariant: whatever happens below (a refusal, an error of Poem's own, a panic), the client gets an answer with a
//! request id and the security headers, and every refusal is a problem body with a stable code. The path itself is never
//! logged, only the template that it matches. In order: request id and span, body on loan, panics caught, the router,
//! errors to problems, the rest of a refused body thrown away, headers. A handler runs in a task of its own, so that a
//! client that goes away cannot cut it off half-way.

use std::{sync::Arc, time::Instant};

use coupon_core::{Code, metrics};
use poem::{
    Endpoint, Error, IntoResponse, Request, Response, Result,
    error::{MethodNotAllowedError, ParsePathError as UnreadablePath, SizedLimitError},
    http::{
        HeaderName, HeaderValue, Method, StatusCode,
        header::{
            ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
};
use poem_openapi::error::{AuthorizationError, ContentTypeError, ParseParamError, ParsePathError};
use tracing::{Instrument, field::Empty};

use crate::{
    app::App,
    loan,
    openapi::Document,
    operations::{Operation, PathItem},
    problem::Problem,
    rate_limit::{self, Counted},
    request_id::{RequestId, X_REQUEST_ID},
};

/// What an answer without a policy of its own may load: nothing.
const NO_CONTENT: &str = "default-src 'none'; frame-ancestors 'none'";

/// Headers of every answer that does not set them itself.
const HEADERS: [(HeaderName, &str); 4] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CONTENT_SECURITY_POLICY, NO_CONTENT),
    (CACHE_CONTROL, "no-store"),
];

/// An endpoint with the manners of the service around it; see [`crate::stack`].
pub struct Edge<E> {
    inner: Arc<E>,
    document: Arc<Document>,
}

impl<E: Endpoint + 'static> Edge<E> {
    /// Puts the edge around `inner`, whose operations `document` describes.
    pub fn new(inner: E, document: Arc<Document>) -> Self {
        Self {
            inner: Arc::new(inner),
            document,
        }
    }

    async fn answer(&self, mut request: Request, item: Option<&PathItem>) -> Result<Response, Problem> {
        let operation = item.and_then(|item| item.operation(request.method()));
        if let Some(refused) = self.refuse_early(&request, item, operation) {
            return refused;
        }
        if let (Some(item), Some(operation)) = (item, operation) {
            if let Some(detour) = item.detour(request.uri()) {
                *request.uri_mut() = detour;
            }
            if operation.is_open()
                && let Some(app) = request.data::<App>()
            {
                rate_limit::count_stranger(app, &request)?;
            }
        }
        let allow = |path: &str| self.document.operations().allow(path);
        let path = request.uri().path().to_owned();
        // In a task of its own: a client that goes away drops this future, but never a handler half-way.
        let inner = Arc::clone(&self.inner);
        let handler = async move { inner.call(request).await.map(IntoResponse::into_response) };
        match tokio::spawn(handler.in_current_span()).await {
            Ok(Ok(response)) => {
                // A bare status without a body, as some of Poem's own endpoints answer.
                let bare = response.headers().get(CONTENT_TYPE).is_none() && is_refusal(response.status());
                if bare {
                    Err(problem_of(response.status().into(), || allow(&path), operation))
                } else {
                    Ok(response)
                }
            }
            Ok(Err(error)) if !is_refusal(error.status()) => Ok(error.into_response()),
            Ok(Err(error)) => Err(problem_of(error, || allow(&path), operation)),
            Err(_panic) => {
                // The panic hook has printed it; its text may quote what must not be logged.
                tracing::error!("a handler panicked");
                Err(Problem::internal())
            }
        }
    }
}

impl<E: Endpoint + 'static> Endpoint for Edge<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        let started = Instant::now();
        let id = RequestId::take_or_make(request.headers());
        request.set_data(id.clone());
        let counted = Counted::default();
        request.set_data(counted.clone());
        let operations = self.document.operations();
        let item = operations.find(request.method(), request.uri().path());
        let route = item.map_or("other", |item| item.template.as_str());
        let method = request.method().clone();
        let span =
            tracing::info_span!("http", %method, route, request_id = %id, status = Empty, latency_ms = Empty);
        let body = loan::lend(&mut request);
        let work = async {
            let answered = self.answer(request, item).await;
            let refused = answered
                .as_ref()
                .map_or(true, |response| is_refusal(response.status()));
            if refused {
                body.throw_away().await;
            }
            let mut response = answered.unwrap_or_else(|problem| problem.response(Some(&id)));
            if method == Method::HEAD {
                response.set_body(());
            }
            finish(&mut response, &id);
            counted.tell(response.headers_mut());
            let span = tracing::Span::current();
            let (status, took) = (response.status().as_u16(), started.elapsed());
            span.record("status", status);
            span.record("latency_ms", took.as_secs_f64() * 1e3);
            metrics::request(method.as_str(), route, status, took);
            tracing::info!("answered");
            response
        };
        Ok(work.instrument(span).await)
    }
}

impl<E> Edge<E> {
    /// What needs no handler: OPTIONS, paths that no handler may see, and faults of the query.
    fn refuse_early(
        &self,
        request: &Request,
        item: Option<&PathItem>,
        operation: Option<&Operation>,
    ) -> Option<Result<Response, Problem>> {
        let path = request.uri().path();
        if request.method() == Method::OPTIONS && operation.is_none() && (item.is_some() || path == "*") {
            let allow = match item {
                Some(_) => self.document.operations().allow(path),
                None => "GET, HEAD, OPTIONS".to_owned(),
            };
            return Some(Ok(Response::builder()
                .status(StatusCode::NO_CONTENT)
                .header(ALLOW, allow)
                .finish()));
        }
        let ill_formed = item.is_some_and(|item| !item.has_well_formed_ids(path));
        if path.contains("%00") || (operation.is_some() && ill_formed) {
            return Some(Err(Problem::not_found())); // nothing stored can have such a name
        }
        let faults = operation
            .map(|operation| operation.check_query(request))
            .unwrap_or_default();
        (!faults.is_empty()).then(|| Err(Problem::invalid(faults)))
    }
}

fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// Whatever was refused below, as a problem: ours as it is, Poem's by its type, the rest by its status.
fn problem_of(error: Error, allow: impl FnOnce() -> String, operation: Option<&Operation>) -> Problem {
    if let Some(problem) = error.downcast_ref::<Problem>() {
        return problem.clone();
    }
    if error.is::<ParsePathError>() || error.is::<UnreadablePath>() {
        return Problem::not_found();
    }
    if let Some(ParseParamError { name, reason }) = error.downcast_ref() {
        return match operation.and_then(|operation| operation.place(name)) {
            Some("path") => Problem::not_found(),
            Some(place) => Problem::field(format!("{place}:{name}"), "invalid", reason),
            None => Problem::field(format!("?{name}"), "invalid", reason),
        };
    }
    if error.is::<MethodNotAllowedError>() {
        let allow = HeaderValue::try_from(allow()).expect("methods are tokens");
        return Problem::new(Code::MethodNotAllowed, "This path does not have this method.")
            .header(ALLOW, allow);
    }
    if error.is::<AuthorizationError>() {
        return Problem::new(Code::Unauthenticated, "This needs a bearer token or an API key.");
    }
    if error.is::<ContentTypeError>() {
        return Problem::new(
            Code::UnsupportedMediaType,
            "This content type is not understood here.",
        );
    }
    if error.is::<SizedLimitError>() {
        return Problem::new(
            Code::PayloadTooLarge,
            "The body is too large, or does not say how large it is.",
        );
    }
    match error.status() {
        StatusCode::UNAUTHORIZED => {
            Problem::new(Code::Unauthenticated, "This needs a bearer token or an API key.")
        }
        StatusCode::FORBIDDEN => coupon_core::Refusal::forbidden().into(),
        StatusCode::NOT_FOUND => Problem::not_found(),
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::PayloadTooLarge, "The body is too large."),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::new(
            Code::UnsupportedMediaType,
            "This content type is not understood here.",
        ),
        StatusCode::PRECONDITION_FAILED => Problem::new(Code::Stale, "The object has changed."),
        StatusCode::SERVICE_UNAVAILABLE => Problem::new(Code::Unavailable, "Not now; try again."),
        status if status.is_client_error() => Problem::field("", "invalid", error.to_string()),
        _ => {
            tracing::error!(%error, "a handler failed");
            Problem::internal()
        }
    }
}

fn finish(response: &mut Response, id: &RequestId) {
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.to_header());
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
