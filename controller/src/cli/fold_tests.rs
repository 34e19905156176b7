use super::super::tests::run;
use super::*;
