//! Questions and answers over the server's socket.

use std::ffi::CString;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pulseaudio::protocol::{
    self, AuthParams, AuthReply, Command, CommandReply, Descriptor, Prop, Props, ProtocolError,
    SetClientNameReply, TagStructReader,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net;

use crate::audio::clock::monotonic_ns;

/// Longest time, in all, for the greeting and the answers while nothing plays yet.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between tries to connect to a server that takes nobody in.
const KNOCK_EVERY: Duration = Duration::from_millis(20);
/// Longest message taken from a server: a list of hundreds of devices.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;
/// Bytes read at once: many periods of stereo.
const READ_BYTES: usize = 64 << 10;
/// Channel number of commands; all others carry sound.
const COMMANDS: u32 = u32::MAX;

/// A server that is not there, or does not speak as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket where one would be: no sound server runs for this user.
    #[error("no PulseAudio or PipeWire server runs here")]
    Absent,
    /// The socket failed or the server went away.
    #[error("the sound server is gone: {0}")]
    Gone(#[from] std::io::Error),
    /// It answered with an error or with nonsense.
    #[error("the sound server refused: {0}")]
    Refused(String),
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Io(error) => Self::Gone(error),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// One message of the server.
pub(crate) enum Message {
    /// A command; its bytes are in [`Connection::payload`].
    Command,
    /// Sound of this many bytes, which must be read next.
    Sound(usize),
}

/// The server's socket; while nothing plays yet, a server that does not answer in time is taken for gone.
struct Socket {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Socket {
    /// Connects to the first of these that takes us in.
    fn connect(paths: &[PathBuf], until: Instant) -> Result<Self, Error> {
        loop {
            let mut full = false;
            for path in paths {
                // A stopped server's queue of callers fills, and then connecting would wait for as long as it likes.
                let tried = net::socket_with(
                    net::AddressFamily::UNIX,
                    net::SocketType::STREAM,
                    net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK,
                    None,
                )
                .and_then(|socket| {
                    net::connect(&socket, &net::SocketAddrUnix::new(path.as_path())?)?;
                    Ok(UnixStream::from(socket))
                });
                match tried {
                    Ok(stream) => {
                        stream.set_nonblocking(false)?;
                        return Ok(Self { stream, until: Some(until) });
                    }
                    Err(error) => full |= error == rustix::io::Errno::AGAIN,
                }
            }
            if !full {
                return Err(Error::Absent);
            }
            if Instant::now() >= until {
                return Err(Error::Gone(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(KNOCK_EVERY);
        }
    }

    /// What is left of the patience, none where there is no end to it.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.until else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(out)
    }
}

/// A socket to the server, past its door.
pub(crate) struct Connection {
    reader: BufReader<Socket>,
    version: u16,
    sequence: u32,
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl Connection {
    /// Connects to the server of this session and introduces us. All answers, until [`Connection::patient`] is called, must
    /// be here within `patience`.
    ///
    /// # Errors
    /// [`Error::Absent`] where there is none, [`Error::Gone`] where it hangs.
    pub(crate) fn open(patience: Duration) -> Result<Self, Error> {
        let socket = Socket::connect(&sockets(), Instant::now() + patience)?;
        socket.stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            reader: BufReader::with_capacity(READ_BYTES, socket),
            version: protocol::MAX_VERSION,
            sequence: 0,
            payload: Vec::with_capacity(1024),
            out: Vec::with_capacity(1024),
        };
        let cookie = pulseaudio::cookie_path_from_env().and_then(|path| std::fs::read(path).ok());
        let greeting = AuthParams {
            version: protocol::MAX_VERSION,
            supports_shm: false,
            supports_memfd: false,
            cookie: cookie.unwrap_or_default(),
        };
        let reply: AuthReply = connection.ask(&Command::Auth(greeting))?;
        connection.version = reply.version.min(protocol::MAX_VERSION);
        let mut props = Props::new();
        props.set(Prop::ApplicationName, c"hallway");
        if let Ok(pid) = CString::new(std::process::id().to_string()) {
            props.set(Prop::ApplicationProcessId, pid);
        }
        let _: SetClientNameReply = connection.ask(&Command::SetClientName(props))?;
        Ok(connection)
    }

    /// Another handle on the socket, to shut it down by.
    pub(crate) fn socket(&self) -> Result<UnixStream, Error> {
        Ok(self.reader.get_ref().stream.try_clone()?)
    }

    /// From now on reads wait for as long as they must: streams may be paused by their server.
    pub(crate) fn patient(&mut self) -> Result<(), Error> {
        self.reader.get_mut().until = None;
        Ok(self.reader.get_ref().stream.set_read_timeout(None)?)
    }

    /// Whether the server says something before this moment, CLOCK_MONOTONIC ns. Waits until either.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(crate) fn speaks_before(&self, at_ns: u64) -> Result<bool, Error> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        let left = Timespec::try_from(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())));
        let mut socket = [PollFd::new(&self.reader.get_ref().stream, PollFlags::IN)];
        match poll(&mut socket, left.ok().as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(Error::Gone(error.into())),
        }
    }

    /// Sends a command and waits for its answer; what else comes meanwhile is passed over.
    ///
    /// # Errors
    /// [`Error`]
    pub(crate) fn ask<R: CommandReply>(&mut self, command: &Command) -> Result<R, Error> {
        let sequence = self.tell(command)?;
        loop {
            match self.next()? {
                Message::Sound(bytes) => self.skip(bytes)?,
                Message::Command => {
                    if let Some(mut rest) = self.answer_to(sequence)? {
                        let mut reply = TagStructReader::new(&mut rest, self.version);
                        return Ok(reply.read()?);
                    }
                }
            }
        }
    }

    /// Sends a command; returns the number that its answer will carry.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(crate) fn tell(&mut self, command: &Command) -> Result<u32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        // In memory that is ours already: this is called while sound plays.
        self.out.clear();
        self.out.resize(protocol::DESCRIPTOR_SIZE, 0);
        command.write_tag_prefixed(self.sequence, &mut self.out, self.version)?;
        if let Some((header, body)) = self.out.split_first_chunk_mut() {
            encode_header(header, COMMANDS, body.len());
        }
        self.reader.get_mut().stream.write_all(&self.out)?;
        Ok(self.sequence)
    }

    /// Sends sound that `fill` puts behind the space left for its header.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(crate) fn send(&mut self, channel: u32, sound: &mut [u8]) -> Result<(), Error> {
        let Some((header, body)) = sound.split_first_chunk_mut::<{ protocol::DESCRIPTOR_SIZE }>() else {
            return Ok(());
        };
        encode_header(header, channel, body.len());
        Ok(self.reader.get_mut().stream.write_all(sound)?)
    }

    /// The next message. A command is in [`Connection::payload`] afterwards.
    ///
    /// # Errors
    /// [`Error`]
    pub(crate) fn next(&mut self) -> Result<Message, Error> {
        let header = protocol::read_descriptor(&mut self.reader)?;
        if header.length > MAX_MESSAGE_BYTES {
            return Err(Error::Refused(format!("a message of {} bytes", header.length)));
        }
        if header.channel != COMMANDS {
            return Ok(Message::Sound(header.length as usize));
        }
        self.payload.resize(header.length as usize, 0);
        self.reader.read_exact(&mut self.payload)?;
        Ok(Message::Command)
    }

    /// Reads sound that [`Connection::next`] announced.
    ///
    /// # Errors
    /// [`Error::Gone`]
    pub(crate) fn sound(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        Ok(self.reader.read_exact(bytes)?)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Error> {
        std::io::copy(&mut (&mut self.reader).take(bytes as u64), &mut std::io::sink())?;
        Ok(())
    }

    /// The rest of the command, if it answers question `sequence`.
    ///
    /// # Errors
    /// [`Error::Refused`] if the answer is an error.
    pub(crate) fn answer_to(&self, sequence: u32) -> Result<Option<&[u8]>, Error> {
        let mut rest = self.payload.as_slice();
        match Command::read_tag_prefixed(&mut rest, self.version) {
            Ok((of, Command::Reply)) if of == sequence => Ok(Some(rest)),
            Ok((of, Command::Error(error))) if of == sequence => Err(Error::Refused(error.to_string())),
            _ => Ok(None),
        }
    }

    /// The command of the last message; nothing where it is an answer or unknown.
    pub(crate) fn command(&self) -> Option<Command> {
        let mut rest = self.payload.as_slice();
        Command::read_tag_prefixed(&mut rest, self.version).ok().map(|(_, command)| command)
    }

    pub(crate) fn version(&self) -> u16 {
        self.version
    }
}

fn encode_header(header: &mut [u8; protocol::DESCRIPTOR_SIZE], channel: u32, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let descriptor = Descriptor { length, channel, offset: 0, flags: protocol::DescriptorFlags::empty() };
    protocol::encode_descriptor(header, &descriptor);
}

/// Where a server of this session listens, in the order in which PulseAudio's own library looks.
fn sockets() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(server) = variable("PULSE_SERVER") {
        // Several may be named; those of other machines are not for us.
        let paths = server.split_whitespace().filter_map(|one| {
            let one = one.rsplit_once('}').map_or(one, |(_, one)| one);
            let path = one.strip_prefix("unix:").unwrap_or(one);
            path.starts_with('/').then(|| PathBuf::from(path))
        });
        return paths.collect();
    }
    let runtime = variable("PULSE_RUNTIME_PATH").map(|dir| PathBuf::from(dir).join("native"));
    let session = variable("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("pulse/native"));
    let user = PathBuf::from(format!("/run/user/{}/pulse/native", rustix::process::getuid().as_raw()));
    runtime.into_iter().chain(session).chain([user]).collect()
}
