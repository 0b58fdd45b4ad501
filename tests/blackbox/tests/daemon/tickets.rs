//! Tickets, as who holds one sees them.

use provider_sim::Mode;

use crate::rig::{BY_HAND, CHAT, MODEL, Rig, Ticket, chat, send, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_asked_for_again_says_how_its_request_stands() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let ask = async |sla: &str| {
        let request = rig.daemon.post(CHAT, &chat(MODEL, "once")).header("idempotency-key", "k");
        let answer = send(request.header("x-offpeak-sla", sla).header("prefer", "respond-async")).await;
        assert_eq!(answer.status.as_u16(), 202, "{answer:?}");
        answer
    };
    let first = ask("24h").await;
    let (id, due) = (&first.body["id"], &first.body["deadline_at"]);
    assert!(due.as_u64().is_some(), "{first:?}");
    // The deadline is the one that it was given at first, whatever is asked for now.
    let again = ask("4h").await;
    assert_eq!((&again.body["id"], &again.body["deadline_at"]), (id, due), "{again:?}");
    let location = first.header("location");
    let looked_at = rig.daemon.get(location).await;
    assert_eq!((&looked_at.body["status"], &looked_at.body["deadline_at"]), (&"in_progress".into(), due));
    rig.daemon.flush().await;
    let ticket = Ticket { prompt: "once".to_owned(), tenant: "search", location: location.to_owned() };
    assert!(rig.daemon.redeem(&ticket).await.is_to(&ticket));
    let done = ask("24h").await;
    assert_eq!((&done.body["id"], &done.body["status"]), (id, &"finished".into()), "{done:?}");
    assert_eq!(rig.billed(Mode::Batch), 1);
}
