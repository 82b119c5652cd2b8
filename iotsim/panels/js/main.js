// What a widget of ours is: the view of its kind.

import { fleetView } from "./fleet.js";
import { runView } from "./run.js";

const VIEWS = { run: runView, fleet: fleetView };

export default {
  render(context) {
    return VIEWS[context.model.get("kind")](context);
  },
};
