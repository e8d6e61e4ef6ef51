//! The allocator of every binary, and how much it takes.

/// Records and answers are made on one thread and dropped on another, which the system's allocator is slow at. librdkafka and what else is
/// written in C have it, too (the crate's feature `unprefixed_malloc_on_supported_platforms`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lets this process take memory in small pages from now on, where the kernel gives huge ones unasked. With those, which the allocator of
/// before asked for, a worker took twice the memory, and was no faster.
pub fn use_small_pages() {
    // Where the kernel does not know of it, there are no huge pages.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay");
    }
}
