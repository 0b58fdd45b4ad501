//! A result on its way to the user's disk: under its name it is there whole, or not at all.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::cli::client::{CallError, Client};
use crate::cli::failure::Failure;
use crate::cli::screen::Screen;

/// Between two pieces of a file; beyond that the connection counts as lost.
const SILENCE: Duration = Duration::from_mins(1);

/// Fetches a file's content to `path` and returns how many lines it has.
pub(crate) async fn fetch(client: &Client, id: &str, path: &Path, screen: &Screen) -> Result<u64, Failure> {
    let cannot_write = |error| Failure::Write(path.to_owned(), error);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    screen.begin_fetch(&name);
    let mut response = client.content(id).await?;
    // Beside its place, since only within a file system a file can be renamed. It goes when we do not come to the end.
    let temporary = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".part")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(path.parent().unwrap_or_else(|| Path::new(".")))
        .map_err(cannot_write)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(cannot_write)?);
    let mut lines = 0;
    loop {
        let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(client.broken(error).into()),
            Err(_) => {
                let message = format!("nothing came for {} s", SILENCE.as_secs());
                return Err(CallError::BrokenOff { message }.into());
            }
        };
        lines += chunk.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        file.write_all(&chunk).await.map_err(cannot_write)?;
        screen.bytes(chunk.len());
    }
    file.sync_all().await.map_err(cannot_write)?;
    temporary.persist(path).map_err(|error| cannot_write(io::Error::from(error)))?;
    Ok(lines)
}
