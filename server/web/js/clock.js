/**
 * How far the server's wall clock is ahead of this browser's, from messages that say when they were sent.
 *
 * A message arrives at the earliest when it was sent: the least difference seen is the clocks' offset and the shortest way
 * here. Half a round trip of a small request is taken off for the way. Good to some milliseconds in a local network.
 */

import { get } from "./api.js";

const WINDOW = 300; // messages: forgets a clock that was set

const differences = [];
let halfRoundTrip = 0;

export const now = () => performance.timeOrigin + performance.now();

/** `sentAt`: milliseconds of the server's clock; the message has just come. */
export function heard(sentAt) {
  differences.push(now() - sentAt);
  if (differences.length > WINDOW) differences.shift();
}

/** Milliseconds since an instant of the server's clock. */
export function since(serverTime) {
  const offset = differences.length ? Math.min(...differences) - halfRoundTrip : 0;
  return Math.max(now() - offset - serverTime, 0);
}

/** Measure the way; the shortest of a few. */
export async function measure() {
  const trips = [];
  for (let i = 0; i < 3; i++) {
    const began = performance.now();
    await get("/healthz").catch(() => null);
    trips.push(performance.now() - began);
  }
  halfRoundTrip = Math.min(...trips) / 2;
}
