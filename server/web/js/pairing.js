/**
 * Which picture is shown with which result: those of the same `seq`, and no others.
 *
 * Pictures and results come over connections of their own, so either may be first. A picture whose result is not here yet
 * waits for it; a newer picture that has its result takes its place. Pure: tests feed it by hand.
 */

const KEPT_RESULTS = 128;
const WAITING_PICTURES = 4;

export class Pairing {
  #results = new Map(); // seq -> result, in order of arrival
  #pictures = []; // newest last

  /** Drop what is kept: after a reconnect another server may number from the beginning again. */
  clear() {
    this.#results.clear();
    this.#pictures = [];
  }

  addResult(result) {
    this.#results.delete(result.seq);
    this.#results.set(result.seq, result);
    if (this.#results.size > KEPT_RESULTS) this.#results.delete(this.#results.keys().next().value);
  }

  /** `picture.seq`. Returns the pictures that will not be shown any more. */
  addPicture(picture) {
    this.#pictures.push(picture);
    return this.#pictures.length > WAITING_PICTURES ? [this.#pictures.shift()] : [];
  }

  /** {picture, result, skipped: pictures} of the newest picture that has its result, once; null if there is none. */
  take() {
    for (let i = this.#pictures.length - 1; i >= 0; i--) {
      const picture = this.#pictures[i];
      const result = this.#results.get(picture.seq);
      if (result !== undefined) return { picture, result, skipped: this.#pictures.splice(0, i + 1).slice(0, -1) };
    }
    return null;
  }
}
