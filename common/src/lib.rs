//! What both sides of a topic agree on.
