//! A broker that says everything again: all that went by is published anew, several times, in another order.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use futures_util::StreamExt as _;

use super::world::World;
use crate::effects::Random;

enum Wish {
    /// Publish all that was heard, shuffled, so many times.
    Again {
        times: u32,
        seed: u64,
    },
    End,
}

/// Listens to everything with the controller's credentials, which is all that a broker's owner can do.
pub struct Replay {
    wishes: tokio::sync::mpsc::UnboundedSender<Wish>,
    done: Receiver<usize>,
    thread: Option<JoinHandle<()>>,
}

impl Replay {
    pub fn listen(world: &World) -> Replay {
        let config = std::fs::read_to_string(world.up.dir().join("serve.toml")).unwrap();
        let config: toml::Table = toml::from_str(&config).unwrap();
        let url = config["url"].as_str().unwrap().to_owned();
        let creds = world.up.dir().join("creds/controller.creds");
        let (wishes, inbox) = tokio::sync::mpsc::unbounded_channel();
        let (tell, done) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(&url, &creds, inbox, &tell));
        });
        assert_eq!(done.recv().unwrap(), 0, "it listens");
        Replay { wishes, done, thread: Some(thread) }
    }

    /// Says everything again. Returns how many messages that was.
    pub fn again(&self, times: u32, seed: u64) -> usize {
        self.wishes.send(Wish::Again { times, seed }).unwrap();
        self.done.recv().unwrap()
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let _ = self.wishes.send(Wish::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    url: &str,
    creds: &std::path::Path,
    mut inbox: tokio::sync::mpsc::UnboundedReceiver<Wish>,
    tell: &Sender<usize>,
) {
    let options = async_nats::ConnectOptions::with_credentials_file(creds).await.unwrap();
    let client = options.connect(url).await.unwrap();
    let mut seen = client.subscribe("sally.>").await.unwrap();
    client.flush().await.unwrap();
    tell.send(0).unwrap();
    let mut heard: Vec<async_nats::Message> = Vec::new();
    // What is said again is heard again.
    let mut known = HashSet::new();
    loop {
        tokio::select! {
            message = seen.next() => match message {
                // Requests of callers are between them and the controller.
                Some(message) if !message.subject.starts_with("sally.api.") => {
                    if known.insert((message.subject.to_string(), message.payload.clone())) {
                        heard.push(message);
                    }
                }
                Some(_) => {}
                None => return,
            },
            wish = inbox.recv() => match wish {
                Some(Wish::Again { times, seed }) => {
                    let mut random = Random::new(seed);
                    let mut all: Vec<_> = (0..times).flat_map(|_| heard.clone()).collect();
                    // Fisher and Yates.
                    for n in (1..all.len()).rev() {
                        all.swap(n, random.below(n as u64 + 1) as usize);
                    }
                    let count = all.len();
                    for message in all {
                        let headers = message.headers.unwrap_or_default();
                        let _ = client.publish_with_headers(message.subject, headers, message.payload).await;
                    }
                    let _ = client.flush().await;
                    tell.send(count).unwrap();
                }
                Some(Wish::End) | None => return,
            },
        }
    }
}
