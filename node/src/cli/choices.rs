//! Choices as they are typed, for `join` and `ctl` alike.

use clap::ValueEnum;
use hallway_codec::{Delay, Profile};

use crate::controls::Speak;

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileChoice {
    Talk,
    Music,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayChoice {
    Quick,
    Balanced,
    Safe,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeakChoice {
    Always,
    PushToTalk,
    Voice,
}

impl From<ProfileChoice> for Profile {
    fn from(choice: ProfileChoice) -> Self {
        match choice {
            ProfileChoice::Talk => Self::Talk,
            ProfileChoice::Music => Self::Music,
        }
    }
}

impl From<DelayChoice> for Delay {
    fn from(choice: DelayChoice) -> Self {
        match choice {
            DelayChoice::Quick => Self::Quick,
            DelayChoice::Balanced => Self::Balanced,
            DelayChoice::Safe => Self::Safe,
        }
    }
}

impl From<SpeakChoice> for Speak {
    fn from(choice: SpeakChoice) -> Self {
        match choice {
            SpeakChoice::Always => Self::Always,
            SpeakChoice::PushToTalk => Self::PushToTalk,
            SpeakChoice::Voice => Self::Voice,
        }
    }
}
