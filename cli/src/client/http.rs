//! HTTP/1.1 to one service: a connection for each request, TLS where the address says so.
//!
//! Invariant: a request is sent again only when that is safe: a GET, or a POST with its `Idempotency-Key`. The key never
//! goes anywhere but to the service's own address: redirects are not followed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coupon_core::{Code, config::Secret, error::Kind};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use super::{Done, Exit, Failure};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Waits before a request is sent again whose connection failed.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// The most of an answer that is kept in memory.
const MAX_ANSWER: usize = 64 << 20;

/// What a request carries.
pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// A service.
pub(super) struct Http {
    host: String,
    port: u16,
    authority: String,
    prefix: String,
    tls: Option<TlsConnector>,
    key: Option<Secret>,
}

impl Http {
    pub(super) fn new(url: &str, key: Option<Secret>) -> Done<Self> {
        let unusable = |why: &str| Failure::new(Exit::Usage, format!("the service's URL {url:?} {why}"));
        let uri: Uri = url.parse().map_err(|_| unusable("is no URL"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unusable("must begin with http:// or https://")),
        };
        let host = uri.host().ok_or_else(|| unusable("names no host"))?;
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            tls: secure.then(trust_of_the_system),
            key,
        })
    }

    /// GET of a JSON object.
    pub(super) async fn get(&self, path: &str) -> Done<Value> {
        self.get_waiting(path, None).await
    }

    /// GET of a JSON object that the service may hold back for so long (`Prefer: wait`).
    pub(super) async fn get_waiting(&self, path: &str, wait: Option<u64>) -> Done<Value> {
        let prefer = wait.map(|seconds| format!("wait={seconds}"));
        let headers: Vec<(&'static str, &str)> = prefer
            .as_deref()
            .map(|prefer| ("prefer", prefer))
            .into_iter()
            .collect();
        json(
            self.send_again(&Method::GET, path, &headers, &Bytes::new())
                .await?,
        )
        .await
    }

    /// POST of a JSON object, with a key of its own, so that it can be sent again.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Done<Value> {
        let key = uuid::Uuid::now_v7().to_string();
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", key.as_str()),
        ];
        let body = Bytes::from(body.to_string());
        json(self.send_again(&Method::POST, path, &headers, &body).await?).await
    }

    /// POST of a stream, once.
    pub(super) async fn post_stream(&self, path: &str, length: Option<u64>, body: Body) -> Done<Value> {
        let key = uuid::Uuid::now_v7().to_string();
        let length = length.map(|length| length.to_string());
        let mut headers = vec![("content-type", "text/csv"), ("idempotency-key", key.as_str())];
        headers.extend(length.as_deref().map(|length| ("content-length", length)));
        json(self.send(&Method::POST, path, &headers, body).await?).await
    }

    /// GET of a file, to be read as it comes.
    pub(super) async fn download(&self, path: &str, from: u64) -> Done<Response<Incoming>> {
        let range = format!("bytes={from}-");
        let headers: &[(&'static str, &str)] = if from > 0 { &[("range", &range)] } else { &[] };
        self.send_again(&Method::GET, path, headers, &Bytes::new()).await
    }

    /// The pages of a list.
    pub(super) fn pages(&self, path: String) -> Pages {
        Pages {
            next: Some(path.clone()),
            path,
        }
    }

    async fn send_again(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &Bytes,
    ) -> Done<Response<Incoming>> {
        let mut waits = AGAIN.into_iter();
        loop {
            let whole = Full::new(body.clone()).map_err(|never| match never {}).boxed();
            match self.send(method, path, headers, whole).await {
                Err(failure) if failure.problem.is_none() && failure.exit == Exit::Failed => {
                    match waits.next() {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => return Err(failure),
                    }
                }
                done => return done,
            }
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Body,
    ) -> Done<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(HOST, &self.authority)
            .header(USER_AGENT, concat!("couponbook/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json, text/csv");
        if let Some(key) = &self.key {
            let mut value = HeaderValue::from_str(key.reveal())
                .map_err(|_| Failure::new(Exit::Usage, "the API key holds characters that no key has"))?;
            value.set_sensitive(true);
            request = request.header("x-api-key", value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::new(Exit::Usage, format!("the request cannot be written: {error}")))?;
        let unreachable = |error: &dyn std::fmt::Display| {
            Failure::new(
                Exit::Failed,
                format!("{} cannot be reached: {error}", self.authority),
            )
        };
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT, connecting)
            .await
            .map_err(|_| unreachable(&"it does not answer"))?
            .map_err(|error| unreachable(&error))?;
        let answer = match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|error| unreachable(&error))?;
                let stream = tokio::time::timeout(CONNECT, tls.connect(name, stream))
                    .await
                    .map_err(|_| unreachable(&"its TLS does not answer"))?
                    .map_err(|error| unreachable(&error))?;
                exchange(stream, request).await
            }
        };
        let answer = answer.map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the connection to {} was lost: {error}", self.authority),
            )
        })?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(refusal(answer).await)
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the last byte of the answer, or when the answer is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await
}

fn trust_of_the_system() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the protocols that it comes with")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn bytes_of(answer: Response<Incoming>) -> Done<Bytes> {
    let lost = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(Exit::Failed, format!("the answer did not arrive: {error}"))
    };
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
    Ok(body.collect().await.map_err(lost)?.to_bytes())
}

async fn json(answer: Response<Incoming>) -> Done<Value> {
    let bytes = bytes_of(answer).await?;
    serde_json::from_slice(&bytes).map_err(|_| {
        Failure::new(
            Exit::Failed,
            "the answer is not JSON; is this the address of a coupon-book service?",
        )
    })
}

/// What a refusal means for the exit code, and its sentence with the faults that it lists.
async fn refusal(answer: Response<Incoming>) -> Failure {
    let status = answer.status();
    let is_problem = answer
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let problem: Option<Value> = match bytes_of(answer).await {
        Ok(bytes) if is_problem => serde_json::from_slice(&bytes).ok(),
        _ => None,
    };
    let exit = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Auth,
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::CONFLICT
        | StatusCode::GONE
        | StatusCode::PRECONDITION_FAILED
        | StatusCode::LOCKED
        | StatusCode::TOO_MANY_REQUESTS => Exit::Conflict,
        _ => Exit::Failed,
    };
    let Some(problem) = problem else {
        return Failure {
            exit,
            message: format!(
                "the service answered {status} and no reason; is this the address of a coupon-book service?"
            ),
            problem: Some(serde_json::json!({ "status": status.as_u16() })),
        };
    };
    let mut message = format!(
        "{} ({})",
        super::text(&problem["detail"]),
        super::text(&problem["code"])
    );
    for fault in problem["errors"].as_array().into_iter().flatten() {
        message += &format!(
            "\n  {}: {}",
            super::text(&fault["pointer"]),
            super::text(&fault["detail"])
        );
    }
    if status == StatusCode::UNAUTHORIZED {
        message += "\n  set COUPONBOOK_API_KEY to a key of this service";
    }
    if let Some(id) = problem["request_id"].as_str() {
        message += &format!("\n  request {id}");
    }
    Failure {
        exit,
        message,
        problem: Some(problem),
    }
}

/// The exit code of a job that failed with this code.
pub(super) fn exit_of(code: &str) -> Exit {
    let known = Code::ALL.iter().find(|known| known.as_str() == code);
    match known.map(|code| code.kind()) {
        Some(Kind::Unauthenticated | Kind::Forbidden) => Exit::Auth,
        Some(Kind::NotFound) => Exit::NotFound,
        Some(Kind::Conflict | Kind::Gone | Kind::Stale | Kind::Locked | Kind::RateLimited) => Exit::Conflict,
        _ => Exit::Failed,
    }
}

/// A list, page by page.
pub(super) struct Pages {
    path: String,
    next: Option<String>,
}

impl Pages {
    /// The next page; `None` behind the last.
    pub(super) async fn next(&mut self, http: &Http) -> Done<Option<Vec<Value>>> {
        let Some(path) = self.next.take() else {
            return Ok(None);
        };
        let mut page = http.get(&path).await?;
        if let Some(cursor) = page["next_cursor"].as_str() {
            let joint = if self.path.contains('?') { '&' } else { '?' };
            self.next = Some(format!("{}{joint}cursor={}", self.path, encode(cursor)));
        }
        match page["data"].take() {
            Value::Array(rows) => Ok(Some(rows)),
            _ => Ok(None),
        }
    }
}

/// Percent-encodes a segment of a path or a value of a query (RFC 3986, 2.3).
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_used_are_refused_as_a_matter_of_usage() {
        for url in ["", "localhost:8080", "ftp://host", "http://", "/v1"] {
            let failure = Http::new(url, None).map(|_| ()).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{url}");
        }
        let http = Http::new("https://[::1]/base/", None).unwrap();
        assert_eq!(
            (http.host.as_str(), http.port, http.prefix.as_str()),
            ("::1", 443, "/base")
        );
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(encode("A/b c%+ü"), "A%2Fb%20c%25%2B%C3%BC");
    }
}
