//! The lines of output and error files, and what faults do to an output file.

use crate::faults::BatchFault;
use crate::ids::Ids;
use crate::reply::append_json;

/// Appends the line of an item that got a response.
pub(crate) fn response_line(to: &mut Vec<u8>, ids: &Ids, custom_id: &str, status: u16, body: &[u8]) {
    line_head(to, ids, custom_id);
    let request_id = ids.text("req_");
    let head = format!(r#""response":{{"status_code":{status},"request_id":"{request_id}","body":"#);
    to.extend_from_slice(head.as_bytes());
    to.extend_from_slice(body);
    to.extend_from_slice(b"},\"error\":null}\n");
}

/// Appends the line of an item that never got a response.
pub(crate) fn error_line(to: &mut Vec<u8>, ids: &Ids, custom_id: &str, code: &str) {
    let message = match code {
        "batch_expired" => "This request could not be executed before the completion window expired.",
        "batch_cancelled" => "This request was not executed because the batch was cancelled.",
        "request_timeout" => "This request timed out.",
        _ => "This request could not be executed.",
    };
    line_head(to, ids, custom_id);
    to.extend_from_slice(b"\"response\":null,\"error\":{\"code\":");
    append_json(to, &code);
    to.extend_from_slice(b",\"message\":");
    append_json(to, &message);
    to.extend_from_slice(b"}}\n");
}

fn line_head(to: &mut Vec<u8>, ids: &Ids, custom_id: &str) {
    to.extend_from_slice(format!(r#"{{"id":"{}","custom_id":"#, ids.text("batch_req_")).as_bytes());
    append_json(to, &custom_id);
    to.push(b',');
}

/// The line of an item that nobody sent.
pub(crate) fn stray_line(ids: &Ids) -> Vec<u8> {
    let mut line = Vec::new();
    let id = ids.text("nobody-sent-this-");
    response_line(&mut line, ids, &id, 200, br#"{"object":"chat.completion","choices":[]}"#);
    line
}

/// Spoils an output file as `faults` say. Only what a client can notice: the lines meant for others stay whole.
/// `stray_line` makes a line that answers nobody's request.
pub(crate) fn damage(output: &mut Vec<u8>, faults: &[BatchFault], stray_line: impl Fn() -> Vec<u8>) {
    for fault in faults {
        let middle = line_start_near(output, output.len() / 2);
        match fault {
            BatchFault::OutputTruncated => {
                let rest = output.get(middle..).unwrap_or_default();
                let line = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                output.truncate(middle + line / 2);
            }
            BatchFault::OutputGarbageLine => {
                output.splice(middle..middle, *b"<html>502 Bad Gateway</html>\n");
            }
            BatchFault::OutputUnknownId => {
                output.splice(middle..middle, stray_line());
            }
            BatchFault::OutputDuplicateId => {
                let line = output.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
                output.extend_from_slice(&line);
            }
            BatchFault::OutputLostLine => {
                let rest = output.get(middle..).unwrap_or_default();
                let line = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
                output.drain(middle..middle + line);
            }
            BatchFault::Stall
            | BatchFault::LoseItems { .. }
            | BatchFault::FailValidation { .. }
            | BatchFault::RefuseLines { .. }
            | BatchFault::Turnaround { .. } => {}
        }
    }
}

/// Where the line begins that `at` is in.
fn line_start_near(output: &[u8], at: usize) -> usize {
    output.get(..at).and_then(|head| head.iter().rposition(|byte| *byte == b'\n')).map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn three_lines(ids: &Ids) -> Vec<u8> {
        let mut output = Vec::new();
        for id in ["a", "b \"quoted\"", "c"] {
            response_line(&mut output, ids, id, 200, br#"{"x":1}"#);
        }
        output
    }

    fn custom_ids(output: &[u8]) -> Vec<Option<String>> {
        let id = |line| {
            serde_json::from_str::<Value>(line)
                .ok()
                .map(|line| line["custom_id"].as_str().unwrap().to_owned())
        };
        std::str::from_utf8(output).unwrap().lines().map(id).collect()
    }

    #[test]
    fn lines_are_json() {
        let ids = Ids::new(1);
        let mut output = three_lines(&ids);
        error_line(&mut output, &ids, "d", "batch_expired");
        let lines: Vec<Value> = std::str::from_utf8(&output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[1]["custom_id"], "b \"quoted\"");
        assert_eq!(lines[1]["response"]["body"]["x"], 1);
        assert_eq!(
            (&lines[3]["response"], &lines[3]["error"]["code"]),
            (&Value::Null, &Value::from("batch_expired"))
        );
    }

    #[test]
    fn damage_is_what_it_says() {
        let ids = Ids::new(1);
        let damaged = |fault| {
            let mut output = three_lines(&ids);
            damage(&mut output, &[fault], || stray_line(&ids));
            custom_ids(&output)
        };
        assert_eq!(damaged(BatchFault::OutputTruncated), [Some("a".into()), None]);
        assert_eq!(damaged(BatchFault::OutputGarbageLine).iter().filter(|id| id.is_none()).count(), 1);
        assert_eq!(damaged(BatchFault::OutputUnknownId).len(), 4);
        assert_eq!(damaged(BatchFault::OutputLostLine), [Some("a".into()), Some("c".into())]);
        let twice = damaged(BatchFault::OutputDuplicateId);
        assert_eq!((twice.len(), &twice[0]), (4, &twice[3]));
    }
}
