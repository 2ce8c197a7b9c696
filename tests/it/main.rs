//! The whole service, proved together.

mod life;
mod matrix;
mod plans;
mod races;
mod schema;
mod sweeps;
