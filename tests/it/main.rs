//! The whole service, proved together.

mod bad_input;
mod contract;
mod life;
