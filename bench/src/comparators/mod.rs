pub(crate) mod bare;
pub(crate) mod sync;
