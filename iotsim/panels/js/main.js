// What a widget of ours is: the view of its kind.

import { runView } from "./run.js";

const VIEWS = { run: runView };

export default {
  render(context) {
    return VIEWS[context.model.get("kind")](context);
  },
};
