// How guesses lie in `guesses`, three vectors a row: kinds of stages from the lowest byte up, flags, u; the stages' values;
// the place and number of changes, which lie behind all rows: column, bias, repeat, minus.

const GUESS: u32 = 3u;
const IS_BY_ID: u32 = 1u;
const IS_WHOLE: u32 = 2u;
