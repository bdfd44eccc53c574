use std::time::Instant;

use tokio::io::Lines;

use super::*;
use crate::events::Event;

/// A socket whose orders are all answered with `Done`, but for one that is refused.
struct Served {
    dir: tempfile::TempDir,
    hub: Hub,
}

type Heard = Lines<BufReader<OwnedReadHalf>>;

fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = Socket::open(&dir.path().join("run/call.sock")).unwrap();
    let (orders, mut asked) = mpsc::channel::<Order>(4);
    tokio::spawn(async move {
        while let Some(order) = asked.recv().await {
            let outcome = match order.command {
                Command::Leave => Err(Notice { code: "no", message: "not now".into(), hint: "Wait.".into() }),
                _ => Ok(Answer::Done),
            };
            let _ = order.outcome.unwrap().send(outcome);
        }
    });
    let hub = Hub::default();
    let greeting = Greeting { room: "kitchen".into(), peer_id: "me".into() };
    tokio::spawn(socket.serve(greeting, hub.clone(), orders));
    Served { dir, hub }
}

impl Served {
    async fn connect(&self) -> (Heard, OwnedWriteHalf) {
        let (read, write) =
            UnixStream::connect(self.dir.path().join("run/call.sock")).await.unwrap().into_split();
        let mut heard = BufReader::new(read).lines();
        let hello = next(&mut heard).await;
        assert_eq!((&hello["event"], &hello["room"]), (&json!("hello"), &json!("kitchen")));
        (heard, write)
    }

    fn happen(&self) {
        self.hub.tell(&Stamped::now(Event::InputFinished));
    }
}

async fn next(heard: &mut Heard) -> Value {
    let line =
        tokio::time::timeout(Duration::from_secs(10), heard.next_line()).await.expect("a line in time");
    serde_json::from_str(&line.unwrap().expect("a line")).unwrap()
}

async fn ask(heard: &mut Heard, write: &mut OwnedWriteHalf, request: &str) -> Value {
    write.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    next(heard).await
}

#[tokio::test]
async fn requests_are_answered_in_order_with_the_id_they_came_with() {
    let served = serve();
    let (mut heard, mut write) = served.connect().await;
    let reply = ask(&mut heard, &mut write, r#"{"command":"mute","on":true,"id":"a"}"#).await;
    assert_eq!(reply, json!({ "reply": "a", "ok": true, "answer": "done" }));
    let reply = ask(&mut heard, &mut write, r#"{"command":"leave","id":2}"#).await;
    assert_eq!((&reply["reply"], &reply["error"]["hint"]), (&json!(2), &json!("Wait.")));
}

#[tokio::test]
async fn nonsense_is_answered_with_what_is_wrong_and_the_connection_stands() {
    let served = serve();
    let (mut heard, mut write) = served.connect().await;
    for nonsense in
        ["", "{", "[]", "null", "3", "{}", r#"{"command":"sing"}"#, r#"{"command":"mute","on":1}"#, "\u{0}"]
    {
        let reply = ask(&mut heard, &mut write, nonsense).await;
        assert_eq!(
            (&reply["ok"], &reply["error"]["code"]),
            (&json!(false), &json!("malformed")),
            "{nonsense}"
        );
    }
    write.write_all(b"\xff\xfe\n").await.unwrap();
    assert_eq!(next(&mut heard).await["ok"], false);
    assert_eq!(ask(&mut heard, &mut write, r#"{"command":"mute","on":true}"#).await["ok"], true);
}

#[tokio::test]
async fn events_come_to_those_who_asked_for_them() {
    let served = serve();
    let (mut all, mut write_all) = served.connect().await;
    let (mut one, mut write_one) = served.connect().await;
    let (mut none, mut write_none) = served.connect().await;
    ask(&mut all, &mut write_all, r#"{"command":"subscribe"}"#).await;
    ask(&mut one, &mut write_one, r#"{"command":"subscribe","events":["chat"]}"#).await;
    served.happen();
    let chat =
        Event::Chat { peer_id: libp2p::PeerId::random(), name: "ana".into(), text: "tea?".into(), id: 1 };
    served.hub.tell(&Stamped::now(chat));
    assert_eq!(next(&mut all).await["event"], "input_finished");
    assert_eq!(next(&mut all).await["text"], "tea?");
    assert_eq!(next(&mut one).await["text"], "tea?");
    assert_eq!(ask(&mut none, &mut write_none, r#"{"command":"mute","on":true}"#).await["ok"], true);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_the_others_hear_on() {
    let served = serve();
    let (mut lazy, mut write) = served.connect().await;
    ask(&mut lazy, &mut write, r#"{"command":"subscribe"}"#).await;
    let (mut keen, mut write_keen) = served.connect().await;
    ask(&mut keen, &mut write_keen, r#"{"command":"subscribe"}"#).await;
    let (began, mut told) = (Instant::now(), 0);
    // Far more than socket buffers and queue hold, as fast as the keen one reads.
    while told < 20_000 {
        for _ in 0..100 {
            served.happen();
        }
        for _ in 0..100 {
            assert_eq!(next(&mut keen).await["event"], "input_finished");
        }
        told += 100;
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    // What was in the buffers comes, and then the end, not the rest.
    let mut got = 0;
    let ended = tokio::time::timeout(READ_PATIENCE * 3, async {
        while let Ok(Some(_)) = lazy.next_line().await {
            got += 1;
        }
    });
    ended.await.expect("it is cut off");
    assert!(got < told, "{got}");
}

#[tokio::test]
async fn a_request_without_end_and_a_client_too_many_are_turned_away() {
    let served = serve();
    let (mut heard, mut write) = served.connect().await;
    let _ = write.write_all(&vec![b'x'; MAX_REQUEST + 100]).await;
    assert_eq!(next(&mut heard).await["error"]["code"], "too_long");
    assert!(heard.next_line().await.map_or(true, |line| line.is_none()), "the end");
    drop((heard, write));
    let mut held = Vec::new();
    while held.len() < MAX_CLIENTS {
        // The one above may take a moment to go.
        let stream = UnixStream::connect(served.dir.path().join("run/call.sock")).await.unwrap();
        let (read, write) = stream.into_split();
        let mut heard = BufReader::new(read).lines();
        if next(&mut heard).await["event"] == "hello" {
            held.push((heard, write));
        }
    }
    let stream = UnixStream::connect(served.dir.path().join("run/call.sock")).await.unwrap();
    let (read, _write) = stream.into_split();
    assert_eq!(next(&mut BufReader::new(read).lines()).await["error"]["code"], "busy");
}

#[tokio::test]
async fn the_socket_is_ours_alone_replaces_a_dead_one_and_goes_with_the_call() {
    let served = serve();
    let path = served.dir.path().join("run/call.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Socket::open(&path).is_err(), "another call's");
    let dead = served.dir.path().join("run/dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    let socket = Socket::open(&dead).unwrap();
    drop(socket);
    assert!(!dead.exists());
}
