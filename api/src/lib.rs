//! The axum ingress.
