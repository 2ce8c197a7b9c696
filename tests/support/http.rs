//! A small HTTP client that shows what came back when a test fails.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;
use uuid::Uuid;

/// Requests to one service as one caller.
#[derive(Clone)]
pub struct Client {
    inner: reqwest::Client,
    base: String,
    headers: Vec<(&'static str, String)>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, if it was JSON; else a string.
    pub body: Value,
}

impl Answer {
    /// The body, if the status is as expected.
    ///
    /// # Panics
    /// When it is not; shows the body.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// Asserts a refusal: status and stable code, as a problem.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        let content_type = self
            .headers
            .get("content-type")
            .and_then(|value| value.to_str().ok());
        assert_eq!(content_type, Some("application/problem+json"));
        assert_eq!(self.body["status"], status, "{}", self.body);
        assert_eq!(
            self.body["request_id"].as_str(),
            self.header("x-request-id"),
            "{}",
            self.body
        );
        assert_eq!(self.body["type"], format!("urn:couponbook:problem:{code}"));
        for name in ["title", "detail"] {
            assert!(
                self.body[name].as_str().is_some_and(|text| !text.is_empty()),
                "{}",
                self.body
            );
        }
        self.body
    }

    /// Asserts 422 `validation_failed` with a fault of this code at this pointer.
    #[track_caller]
    pub fn invalid(self, pointer: &str, code: &str) -> Value {
        let body = self.refused(422, "validation_failed");
        let faults = body["errors"].as_array().expect("errors");
        let named = faults
            .iter()
            .any(|fault| fault["pointer"] == pointer && fault["code"] == code);
        assert!(named, "no {code} at {pointer}: {body}");
        body
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Client {
    /// Nobody, at `base`.
    pub fn new(base: &str) -> Self {
        let inner = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self {
            inner,
            base: base.to_owned(),
            headers: Vec::new(),
        }
    }

    /// With a bearer token.
    pub fn bearer(&self, token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {token}"))
    }

    /// With an API key.
    pub fn key(&self, key: &str) -> Self {
        self.with("X-Api-Key", key)
    }

    /// With one more header on every request.
    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(known, _)| *known != name);
        client.headers.push((name, value.to_owned()));
        client
    }

    /// The same caller on connections of its own.
    pub fn on_own_connection(&self) -> Self {
        Self {
            inner: Self::new(&self.base).inner,
            ..self.clone()
        }
    }

    /// A request to be filled in.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.inner.request(method, format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn try_send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// Sends a request that is to be answered.
    ///
    /// # Panics
    /// When no answer came.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.try_send(request).await.expect("an answer")
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    /// PATCH with a JSON body.
    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(&body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// POST of a CSV file.
    pub async fn post_csv(&self, path: &str, csv: impl Into<reqwest::Body>) -> Answer {
        self.send(
            self.request(Method::POST, path)
                .header("Content-Type", "text/csv")
                .body(csv),
        )
        .await
    }

    /// Polls a job, asking to be told of its end, until it has ended.
    ///
    /// # Panics
    /// When it has not ended within a minute.
    pub async fn job_end(&self, job_id: &str) -> Value {
        self.job_end_within(job_id, Duration::from_secs(60)).await
    }

    /// The same for a job that may take longer.
    ///
    /// # Panics
    /// When it has not ended by then.
    pub async fn job_end_within(&self, job_id: &str, patience: Duration) -> Value {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            let path = format!("/v1/jobs/{job_id}");
            let job = self
                .send(self.request(Method::GET, &path).header("Prefer", "wait=5"))
                .await
                .expect(200);
            if !matches!(job["state"].as_str(), Some("queued" | "running" | "cancelling")) {
                return job;
            }
        }
        panic!("the job {job_id} has not ended within {patience:?}");
    }

    /// Makes a book with these members beside its name.
    pub async fn book(&self, members: Value) -> Uuid {
        let mut body = serde_json::json!({ "name": "A book" });
        if let (Some(body), Value::Object(members)) = (body.as_object_mut(), members) {
            body.extend(members);
        }
        let book = self.post("/v1/books", body).await.expect(201);
        book["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")
    }

    /// Puts codes into a book and waits until they are there.
    pub async fn codes(&self, book_id: Uuid, codes: &[String]) {
        let job = self
            .post(
                &format!("/v1/books/{book_id}/codes"),
                serde_json::json!({ "codes": codes }),
            )
            .await;
        let job = self.job_end(job.expect(202)["id"].as_str().expect("an id")).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
}
