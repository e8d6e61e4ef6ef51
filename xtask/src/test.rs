use std::process::ExitCode;
pub(crate) fn test(_c: &[String]) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
