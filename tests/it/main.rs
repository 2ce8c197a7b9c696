//! The whole service, proved together.

mod contract;
mod life;
