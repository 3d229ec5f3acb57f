/** The view library, and a store: state outside of components, which they follow. */

import { html, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";

export { html, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** State as one frozen object. `set` takes the fields that change, and tells whoever follows. */
export function createStore(initial) {
  let state = Object.freeze({ ...initial });
  const followers = new Set();
  return {
    get: () => state,
    set(changes) {
      state = Object.freeze({ ...state, ...changes });
      for (const follower of [...followers]) follower(state);
    },
    /** Returns the function that ends it. */
    follow(follower) {
      followers.add(follower);
      return () => followers.delete(follower);
    },
  };
}

/** What `select` picks of a store's state; the component is drawn anew when that changes. */
export function useStore(store, select = (state) => state) {
  const [value, setValue] = useState(() => select(store.get()));
  useEffect(() => {
    const update = (state) => setValue(() => select(state));
    update(store.get());
    return store.follow(update);
  }, [store]);
  return value;
}

/** Call `task` now and every `seconds`, while the component is there and the tab is looked at. */
export function useEvery(seconds, task, inputs = []) {
  useEffect(() => {
    let ended = false;
    let timer;
    const run = async () => {
      if (!document.hidden) await task(() => ended);
      if (!ended) timer = setTimeout(run, seconds * 1000);
    };
    run();
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  }, inputs);
}
