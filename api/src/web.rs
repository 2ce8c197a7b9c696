//! The page at `/`: says what this is and where to go on, for as long as no web UI is built into the binary.

use poem::{
    Endpoint, Response, Route,
    endpoint::make_sync,
    get,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
};

const PAGE: &str = include_str!("web/index.html");
const STYLE: &str = include_str!("web/page.css");

/// Only the page's own style.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Adds the page to a route.
pub(crate) fn routes(route: Route) -> Route {
    route
        .at("/", get(file("text/html; charset=utf-8", PAGE)))
        .at("/page.css", get(file("text/css; charset=utf-8", STYLE)))
}

fn file(content_type: &'static str, text: &'static str) -> impl Endpoint<Output = Response> {
    make_sync(move |_| {
        Response::builder()
            .header(CONTENT_TYPE, content_type)
            .header(CONTENT_SECURITY_POLICY, POLICY)
            .header(CACHE_CONTROL, "no-cache")
            .body(text)
    })
}
