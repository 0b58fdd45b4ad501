//! The file on its way to the daemon: a form of known length, streamed.

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt as _};
use reqwest::Body;
use tokio::io::AsyncReadExt as _;

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::input::{Input, InputError};
use crate::cli::screen::Screen;
use crate::cli::wire::File;
use crate::clock::Chance;

/// Read from disk at once.
const CHUNK: usize = 256 * 1024;

/// Uploads the file, once. What the daemon has afterwards is what was looked at before.
pub(crate) async fn upload(client: &Client, input: &Input, screen: &Screen) -> Result<File, Failure> {
    let unreadable = |error| InputError::Unreadable(input.path.clone(), error);
    let file = tokio::fs::File::open(&input.path).await.map_err(unreadable)?;
    input.check_unchanged(&file.metadata().await.map_err(unreadable)?)?;
    screen.begin_upload(input.size);

    let boundary = format!("offpeak-{:032x}", Chance::system().wide());
    let (head, tail) = (head(&boundary, &input.upload_name()), format!("\r\n--{boundary}--\r\n"));
    let length = head.len() as u64 + input.size + tail.len() as u64;
    let shown = screen.counter();
    let content = stream::try_unfold(file.take(input.size), |mut file| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let read = file.read_buf(&mut chunk).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (chunk.freeze(), file)))
    })
    .inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            shown.inc(chunk.len() as u64);
        }
    });
    let once = |text: String| stream::once(std::future::ready(Ok(text.into())));
    let form = Body::wrap_stream(once(head).chain(content).chain(once(tail)));
    let uploaded = client.upload(&boundary, length, form).await;

    // A file that somebody writes to may have been sent in part old and in part new.
    let metadata = tokio::fs::metadata(&input.path).await.map_err(unreadable)?;
    input.check_unchanged(&metadata)?;
    let uploaded = uploaded?;
    if uploaded.bytes == input.size {
        Ok(uploaded)
    } else {
        Err(InputError::Changed(input.path.clone()).into())
    }
}

/// What comes before the file's content.
fn head(boundary: &str, name: &str) -> String {
    // As browsers do it: what would end the name is written in percent.
    let name = name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A");
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        let head = head("b", "a\"\r\nX: y.jsonl");
        assert!(head.contains("filename=\"a%22%0D%0AX: y.jsonl\"\r\n"), "{head}");
        assert_eq!(head.matches("\r\n\r\n").count(), 2);
    }
}
