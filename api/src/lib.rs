//! HTTP in, JSON out: the manners of the service, and on top of them its endpoints.
//!
//! An endpoint takes `Body<T>`, `Query<T>` and `Path<T>` that are valid when it runs, and returns
//! `Result<Json<T>, Problem>`; everything else happens at the [`edge`]. To add one: a file with its `#[OpenApi]` block,
//! which then joins the tuple that is given to `OpenApiService::new`.

pub mod app;
pub mod auth;
pub mod csv;
pub mod edge;
pub mod endpoints;
pub mod etag;
mod intake;
pub mod lists;
mod loan;
pub mod metrics;
pub mod nullable;
pub mod once;
pub mod openapi;
pub mod operations;
pub mod payload;
pub mod problem;
pub mod rate_limit;
pub mod reply;
pub mod request_id;
pub mod schema;
pub mod server;
pub mod time;
pub mod verbatim;
pub mod web;
mod wire;

#[cfg(test)]
mod demo;

use std::sync::{Arc, atomic::AtomicBool};

use poem::{Endpoint, EndpointExt, Request, Response, Route, http::Uri};
use poem_openapi::OpenApiService;

pub use self::{
    app::App, nullable::Nullable, openapi::Document, payload::Body, problem::Problem, request_id::RequestId,
    time::Time,
};

/// The whole application: `route` with the document, its page and the edge around them, in the right order.
pub fn stack(route: Route, document: Arc<Document>) -> impl Endpoint<Output = Response> + 'static {
    edge::Edge::new(document.routes(route), document)
}

/// Every endpoint of the service, and its document.
fn service(app: &App, draining: &Arc<AtomicBool>) -> OpenApiService<impl poem_openapi::OpenApi + use<>, ()> {
    use endpoints::{
        api_keys, assign, audit, auth, books, codes, coupons, distribution_items, distribution_proof,
        distribution_undo, distributions, exports, generate, health, job_errors, job_events, jobs,
        jobs_admin, me, pools, redemptions, schedule_fires, schedule_preview, schedules, setup, stats, till,
        users,
    };
    let endpoints = (
        books::Books { app: app.clone() },
        // A tuple has at most sixteen; what belongs together makes one of its own.
        (
            codes::Codes { app: app.clone() },
            generate::Generate { app: app.clone() },
            exports::Exports { app: app.clone() },
        ),
        coupons::Coupons { app: app.clone() },
        assign::Assign { app: app.clone() },
        till::Till { app: app.clone() },
        redemptions::Redemptions { app: app.clone() },
        (
            pools::Pools { app: app.clone() },
            distributions::Distributions { app: app.clone() },
            distribution_items::DistributionItems { app: app.clone() },
            distribution_undo::DistributionUndo { app: app.clone() },
            distribution_proof::DistributionProof { app: app.clone() },
            schedule_preview::SchedulePreviews { app: app.clone() },
            schedules::Schedules { app: app.clone() },
            schedule_fires::ScheduleFires { app: app.clone() },
        ),
        (
            jobs::Jobs { app: app.clone() },
            job_errors::JobErrors { app: app.clone() },
            job_events::JobEvents { app: app.clone() },
            jobs_admin::JobsAdmin { app: app.clone() },
        ),
        audit::Audit { app: app.clone() },
        stats::Statistics { app: app.clone() },
        auth::Sessions { app: app.clone() },
        me::Me { app: app.clone() },
        users::Users { app: app.clone() },
        api_keys::ApiKeys { app: app.clone() },
        setup::Setup { app: app.clone() },
        health::Health {
            app: app.clone(),
            draining: Arc::clone(draining),
        },
    );
    OpenApiService::new(endpoints, "coupon-book", env!("CARGO_PKG_VERSION"))
}

/// The service as one endpoint; `draining` turns true when the process has been told to end.
pub fn application(app: App, draining: Arc<AtomicBool>) -> impl Endpoint<Output = Response> + 'static {
    let service = service(&app, &draining);
    let document = Arc::new(Document::new(&service));
    stack(web::routes(Route::new().nest("/", service)), document)
        .data(app)
        .before(|request| async { Ok(web::page_of(unversioned(request))) })
}

/// The OpenAPI document, as it is served.
pub fn openapi(app: &App) -> String {
    Document::new(&service(app, &Arc::new(AtomicBool::new(false))))
        .text()
        .to_owned()
}

/// The six paths that also answer without `/v1`: making a book, its codes, assigning, locking, redeeming.
const UNVERSIONED: [&str; 3] = ["/coupons", "/coupons/codes", "/coupons/assign"];

/// Gives a request to one of those paths its version.
fn unversioned(mut request: Request) -> Request {
    let path = request.uri().path();
    let coded = ["/coupons/assign/", "/coupons/lock/", "/coupons/redeem/"]
        .iter()
        .any(|prefix| {
            path.strip_prefix(prefix)
                .is_some_and(|code| !code.is_empty() && !code.contains('/'))
        });
    if coded || UNVERSIONED.contains(&path) {
        let target = request
            .uri()
            .path_and_query()
            .map_or(path, |target| target.as_str());
        if let Ok(versioned) = Uri::try_from(format!("/v1{target}")) {
            *request.uri_mut() = versioned;
        }
    }
    request
}
