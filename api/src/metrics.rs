//! /metrics on a listener of its own, for processes without an API and for those that hide it from the world.

use std::{future::Future, io, net::SocketAddr};

use coupon_core::metrics::exposition::{CONTENT_TYPE, Exposition};
use poem::{Endpoint, IntoEndpoint, Response, Route, endpoint::make, get};

use crate::server::{Limits, Server};

/// Scrapers that may be connected at a time.
const CONNECTIONS: usize = 16;

/// A bound listener, not yet serving.
pub struct MetricsServer {
    server: Server,
    exposition: Exposition,
}

impl MetricsServer {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr, exposition: Exposition) -> io::Result<Self> {
        let limits = Limits {
            connections: CONNECTIONS,
            ..Limits::default()
        };
        let server = Server::bind(address, limits).await?;
        Ok(Self { server, exposition })
    }

    /// The address that it really listens on.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.server.local_addr()
    }

    /// Serves until `shutdown` is done.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let route = Route::new().at("/metrics", get(endpoint(self.exposition)));
        self.server.serve(route.into_endpoint(), shutdown).await;
    }
}

fn endpoint(exposition: Exposition) -> impl Endpoint<Output = Response> {
    make(move |_| {
        let exposition = exposition.clone();
        async move {
            let text = exposition.text().await;
            Ok::<_, poem::Error>(Response::builder().content_type(CONTENT_TYPE).body(text))
        }
    })
}
