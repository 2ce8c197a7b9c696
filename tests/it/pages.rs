//! Pages for people beside the API: the UI where it was built into this binary, else the page that says so.

use coupon_tests::Service;
use reqwest::StatusCode;

const A_BROWSER: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_page_is_there_with_or_without_a_ui() {
    let service = Service::without_workers().await;
    for accept in [A_BROWSER, "*/*"] {
        let page = service.nobody().with("accept", accept).get("/").await;
        assert_eq!(page.status, StatusCode::OK, "{accept}");
        assert!(
            page.header("content-type")
                .is_some_and(|kind| kind.starts_with("text/html"))
        );
        assert!(
            page.header("content-security-policy")
                .is_some_and(|policy| policy.contains("frame-ancestors 'none'"))
        );
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(page.header("cache-control"), Some("no-cache"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_never_stands_in_for_the_api() {
    let service = Service::without_workers().await;
    let browser = service.nobody().with("accept", A_BROWSER);
    browser.get("/v1/nothing").await.refused(404, "not_found");
    browser.get("/assets/none.js").await.refused(404, "not_found");
    browser.get("/v1/books").await.refused(401, "unauthenticated");
    service.nobody().get("/books").await.refused(404, "not_found");
}
