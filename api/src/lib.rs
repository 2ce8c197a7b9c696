//! HTTP in, JSON out: the manners of the service, and on top of them its endpoints.
//!
//! An endpoint takes `Body<T>`, `Query<T>` and `Path<T>` that are valid when it runs, and returns
//! `Result<Json<T>, Problem>`; everything else happens at the [`edge`]. To add one: a file with its `#[OpenApi]` block,
//! which then joins the tuple that is given to `OpenApiService::new`.

pub mod edge;
pub mod etag;
pub mod lists;
mod loan;
pub mod nullable;
pub mod openapi;
pub mod operations;
pub mod payload;
pub mod problem;
pub mod request_id;
pub mod schema;
pub mod server;
mod wire;

#[cfg(test)]
mod demo;

use std::sync::Arc;

use poem::{Endpoint, Response, Route};

pub use self::{
    nullable::Nullable, openapi::Document, payload::Body, problem::Problem, request_id::RequestId,
};

/// The whole application: `route` with the document, its page and the edge around them, in the right order.
pub fn stack(route: Route, document: Arc<Document>) -> impl Endpoint<Output = Response> + 'static {
    edge::Edge::new(document.routes(route), document)
}
