//! The web UI, compiled into the binary: its page for every address that a person may open, and its files.
//!
//! Invariant: a page is only given to who asks for one (GET or HEAD, `Accept` names HTML) and never in place of the API;
//! a file whose name carries its hash is kept for ever by browsers, everything else is asked about each time. Nothing
//! is loaded from elsewhere: the policy allows scripts, connections and images of this service alone, and inline styles,
//! which the component kit makes while it runs. In a build without the UI a plain page says so.

use std::borrow::Cow;

use poem::{
    Endpoint, Request, Response, Route,
    endpoint::make_sync,
    get,
    http::{
        HeaderValue, Method, StatusCode,
        header::{
            ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
            ETAG, IF_NONE_MATCH, VARY,
        },
        uri::{PathAndQuery, Uri},
    },
};
use rust_embed::RustEmbed;

use crate::{Problem, etag};

/// What `npm run build` left. The folder may be empty or missing: a service without pages is still a service.
#[derive(RustEmbed)]
#[folder = "../web/dist"]
#[allow_missing = true]
struct Built;

const UNBUILT_PAGE: &str = include_str!("web/unbuilt.html");
const UNBUILT_STYLE: &str = include_str!("web/unbuilt.css");

/// For the page that says that there is no UI: its own style.
const UNBUILT_POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// For the UI. `blob:` shows files that the browser itself has made, `data:` small drawings in style sheets.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
     img-src 'self' data: blob:; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// For files whose name changes with their content: a year, which is for ever to a browser.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// Kept, but asked about each time.
const ASK_FIRST: &str = "no-cache";

/// Addresses that belong to programs: what is unknown there is a problem, never a page.
const OF_PROGRAMS: [&str; 6] = ["/v1", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics"];

/// What there is to serve.
type Files = fn(&str) -> Option<Content>;

/// A file and the tag of its content.
struct Content {
    bytes: Cow<'static, [u8]>,
    tag: String,
}

fn built(path: &str) -> Option<Content> {
    Built::get(path).map(|file| {
        let hash = file.metadata.sha256_hash();
        let tag = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Content {
            bytes: file.data,
            tag,
        }
    })
}

/// Where the page lies for the router, whose `/` belongs to the API that is nested there.
const PAGE: &str = "/index.html";

/// Whether this build holds the UI.
pub fn is_built() -> bool {
    built("index.html").is_some()
}

/// Adds the page and its files to a route.
pub(crate) fn routes(route: Route) -> Route {
    if !is_built() {
        return route
            .at(PAGE, get(unbuilt("text/html; charset=utf-8", UNBUILT_PAGE)))
            .at(
                "/unbuilt.css",
                get(unbuilt("text/css; charset=utf-8", UNBUILT_STYLE)),
            );
    }
    let endpoint = || {
        make_sync(|request: Request| {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            file(built, &path, &request)
        })
    };
    route
        .at(PAGE, get(endpoint()))
        .at("/favicon.svg", get(endpoint()))
        .at("/assets/*path", get(endpoint()))
}

/// Sends whoever asks for a page to the UI, which knows its own addresses; without a UI there is only the first page.
pub(crate) fn page_of(mut request: Request) -> Request {
    let is_first = request.uri().path() == "/" && is_read(&request);
    if is_first || (wants_a_page(&request) && is_built()) {
        *request.uri_mut() = Uri::from(PathAndQuery::from_static(PAGE));
    }
    request
}

fn is_read(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

fn wants_a_page(request: &Request) -> bool {
    let path = request.uri().path();
    let is_of = |owner: &str| {
        let rest = path.strip_prefix(owner);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    is_read(request)
        && request
            .header(ACCEPT)
            .is_some_and(|accept| accept.contains("text/html"))
        && !path.starts_with("/assets/")
        && path != "/favicon.svg"
        && !OF_PROGRAMS.iter().any(|owner| is_of(owner))
}

/// One file, packed as the client can unpack it.
fn file(files: Files, path: &str, request: &Request) -> Result<Response, Problem> {
    let plain = files(path).ok_or_else(Problem::not_found)?;
    let accepted = request.header(ACCEPT_ENCODING).unwrap_or_default();
    let packed = [("br", "br"), ("gzip", "gz")]
        .into_iter()
        .filter(|(coding, _)| accepts(accepted, coding))
        .find_map(|(coding, extension)| Some((coding, files(&format!("{path}.{extension}"))?)));
    let (coding, content) = packed.map_or((None, plain), |(coding, content)| (Some(coding), content));
    let tag = format!("\"{}\"", content.tag);
    let keep = if path.starts_with("assets/") {
        FOR_EVER
    } else {
        ASK_FIRST
    };
    let response = Response::builder()
        .header(ETAG, &tag)
        .header(CACHE_CONTROL, keep)
        .header(VARY, "accept-encoding")
        .header(CONTENT_SECURITY_POLICY, POLICY)
        .header("cross-origin-opener-policy", "same-origin");
    if etag::is_known(request.header(IF_NONE_MATCH), &tag) {
        return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
    }
    let mut response = response
        .content_type(media_type(path))
        .body(content.bytes.into_owned());
    if let Some(coding) = coding {
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    Ok(response)
}

/// Whether `Accept-Encoding` allows a coding; one that is named with `q=0` is refused (RFC 9110, section 12.5.3).
fn accepts(header: &str, coding: &str) -> bool {
    header.split(',').any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(coding));
        let refused = parts.any(|part| {
            part.strip_prefix("q=")
                .and_then(|q| q.parse::<f32>().ok())
                .is_some_and(|q| q <= 0.0)
        });
        named && !refused
    })
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

fn unbuilt(content_type: &'static str, text: &'static str) -> impl Endpoint<Output = Response> {
    make_sync(move |_| {
        Response::builder()
            .header(CONTENT_TYPE, content_type)
            .header(CONTENT_SECURITY_POLICY, UNBUILT_POLICY)
            .header(CACHE_CONTROL, ASK_FIRST)
            .body(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UI of three files, one of them also packed.
    fn ui(path: &str) -> Option<Content> {
        let (bytes, tag): (&[u8], _) = match path {
            "index.html" => (b"<!doctype html>", "page"),
            "assets/app-1a2b.js" => (b"let a = 1", "plain"),
            "assets/app-1a2b.js.gz" => (b"\x1f\x8b", "gz"),
            "assets/app-1a2b.js.br" => (b"br", "br"),
            _ => return None,
        };
        Some(Content {
            bytes: bytes.into(),
            tag: tag.to_owned(),
        })
    }

    fn asked(path: &str, accept: &str) -> Request {
        Request::builder().uri_str(path).header("accept", accept).finish()
    }

    fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
        response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn a_page_is_for_people_and_not_in_place_of_the_api() {
        let html = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8";
        for path in [
            "/",
            "/books",
            "/books/1/import",
            "/coupons",
            "/v1x",
            "/docs-of-mine",
        ] {
            assert!(wants_a_page(&asked(path, html)), "{path}");
        }
        for path in [
            "/v1",
            "/v1/books",
            "/docs",
            "/docs/docs.js",
            "/openapi.json",
            "/readyz",
            "/assets/x.js",
        ] {
            assert!(!wants_a_page(&asked(path, html)), "{path}");
        }
        assert!(
            !wants_a_page(&asked("/books", "*/*")),
            "a program asks for anything"
        );
        let post = Request::builder()
            .method(Method::POST)
            .uri_str("/coupons")
            .header("accept", html)
            .finish();
        assert!(!wants_a_page(&post));
    }

    #[test]
    fn hashed_files_are_kept_for_ever_and_the_page_is_asked_about() {
        let script = file(ui, "assets/app-1a2b.js", &asked("/", "*/*")).unwrap();
        assert_eq!(header(&script, "cache-control"), Some(FOR_EVER));
        assert_eq!(
            header(&script, "content-type"),
            Some("text/javascript; charset=utf-8")
        );
        let page = file(ui, "index.html", &asked("/", "*/*")).unwrap();
        assert_eq!(header(&page, "cache-control"), Some("no-cache"));
        assert!(
            header(&page, "content-security-policy")
                .is_some_and(|policy| policy.contains("script-src 'self';"))
        );
        assert!(file(ui, "assets/none.js", &asked("/", "*/*")).is_err());
    }

    #[test]
    fn a_file_comes_packed_as_the_client_can_unpack_it() {
        for (accepted, coding, tag) in [
            ("gzip, deflate, br", Some("br"), "\"br\""),
            ("gzip", Some("gzip"), "\"gz\""),
            ("br;q=0, gzip;q=0.5", Some("gzip"), "\"gz\""),
            ("identity", None, "\"plain\""),
        ] {
            let request = Request::builder()
                .uri_str("/")
                .header("accept-encoding", accepted)
                .finish();
            let answer = file(ui, "assets/app-1a2b.js", &request).unwrap();
            assert_eq!(header(&answer, "content-encoding"), coding, "{accepted}");
            assert_eq!(header(&answer, "etag"), Some(tag), "{accepted}");
            assert_eq!(header(&answer, "vary"), Some("accept-encoding"));
        }
    }

    #[test]
    fn a_known_file_costs_no_body() {
        let request = Request::builder()
            .uri_str("/")
            .header("if-none-match", "\"page\"")
            .finish();
        let answer = file(ui, "index.html", &request).unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(header(&answer, "etag"), Some("\"page\""));
    }
}
