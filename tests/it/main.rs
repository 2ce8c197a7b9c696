//! The whole service, proved together.

mod life;
mod readme;
